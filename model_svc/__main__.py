"""`python -m model_svc` serves; `python -m model_svc doctor|places|convert …` looks at the machine, converts.

Only serving loads grpc: the others run where torch and transformers alone are installed.
"""

import importlib
import sys

from model_svc.settings import ModelTierSettings
from tokenwire import logs
from tokenwire.settings import parse_settings

COMMANDS = {"doctor": "model_svc.doctor", "convert": "model_svc.model.convert", "places": "model_svc.places"}
"""Modules with a `main(argv) -> int`, imported only when asked for: they load torch."""


def main() -> None:
    """Dispatch on the first argument."""
    if len(sys.argv) > 1 and sys.argv[1] in COMMANDS:
        raise SystemExit(importlib.import_module(COMMANDS[sys.argv[1]]).main(sys.argv[2:]))
    settings = parse_settings(ModelTierSettings, "model", description=__doc__ or "")
    logs.configure("model")
    importlib.import_module("model_svc.server").main(settings)


if __name__ == "__main__":
    main()
