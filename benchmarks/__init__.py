"""Measurements of Tokenwire, by `make bench`; METHODOLOGY.md says what they mean."""
