"""`python -m gateway` serves clients: gRPC on one port, HTTP on another."""

import functools

from gateway.server import serve
from gateway.settings import GatewaySettings
from tokenwire import logs
from tokenwire.server import run
from tokenwire.settings import parse_settings


def main() -> None:
    """Parse the settings and serve until told to stop."""
    settings = parse_settings(GatewaySettings, "gateway", description=__doc__ or "")
    logs.configure("gateway")
    run(functools.partial(serve, settings))


if __name__ == "__main__":
    main()
