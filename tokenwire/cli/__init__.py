"""The command line `tokenwire`."""
