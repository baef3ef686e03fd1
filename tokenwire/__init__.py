"""What every Tokenwire tier and every Python client shares. The clients are loaded when they are first named here."""

from importlib import import_module
from typing import TYPE_CHECKING

from tokenwire.version import __version__

if TYPE_CHECKING:
    from tokenwire.client import AsyncClient, Client

__all__ = ["AsyncClient", "Client", "__version__"]


def __getattr__(name: str) -> object:
    if name not in ("AsyncClient", "Client"):
        raise AttributeError(f"module 'tokenwire' has no attribute {name!r}")
    return getattr(import_module("tokenwire.client"), name)
