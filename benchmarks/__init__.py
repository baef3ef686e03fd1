"""Measurements of Tokenwire. `make bench-startup` runs `startup`."""
