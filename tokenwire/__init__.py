"""What every Tokenwire tier and every Python client shares."""

from tokenwire.version import __version__

__all__ = ["__version__"]
