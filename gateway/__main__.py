"""`python -m gateway` serves clients: gRPC on one port, HTTP on another."""

import functools
import os

from gateway.server import serve
from gateway.settings import GatewaySettings
from tokenwire import logs
from tokenwire.server import run
from tokenwire.settings import parse_settings
from tokenwire.worker_place import place_from
from tokenwire.workers import serve_workers


def main() -> None:
    """Parse the settings and serve until told to stop."""
    settings = parse_settings(GatewaySettings, "gateway", description=__doc__ or "")
    logs.configure("gateway")
    place = place_from(os.environ)
    if settings.workers > 1 and place is None:
        raise SystemExit(run(functools.partial(serve_workers, "gateway", settings, ("port", "http_port"))))
    run(functools.partial(serve, settings, place))


if __name__ == "__main__":
    main()
