"""The model tier: token IDs in, token IDs out, one engine per device group."""
