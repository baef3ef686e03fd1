"""Structured logs: one event per line, readable or JSON, with whatever fields the caller attaches.

`TOKENWIRE_LOG` holds words separated by commas: a level (debug, info, warning, error) and a form (readable, json).
Fields are given as `log.info("request finished", extra=fields(request_id=..., reason=...))`; with `table` they are
lines below.
"""

import json
import logging
import os
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from tokenwire.cutting import cut
from tokenwire.visible import visible

LEVELS = ("debug", "info", "warning", "error")
FORMS = ("readable", "json")
FIELDS, TABLE = "tokenwire_fields", "tokenwire_table"
MAX_MESSAGE_BYTES = 4096
MAX_TRACEBACK_BYTES = 16 * 1024
"""Longer ones are cut, and fields at `MAX_TOLD_BYTES`: no client makes a line as long as it likes."""


def fields(**values: Any) -> dict[str, dict[str, Any]]:
    """The `extra` argument of a logging call. None values are left out."""
    return {FIELDS: {key: value for key, value in values.items() if value is not None}}


def table(lines: Sequence[str], **values: Any) -> dict[str, Any]:
    """The `extra` argument of a logging call, of fields that stand below the readable line as `lines` have them."""
    return {**fields(**values), TABLE: lines}


class ReadableFormatter(logging.Formatter):
    """`12:00:01.123 info  gateway  request finished  request_id=req-1 reason=length`."""

    def __init__(self, tier: str) -> None:
        super().__init__()
        self.tier = tier

    def format(self, record: logging.LogRecord) -> str:
        """One line, and below it, indented, a table or a traceback when there is one: what looks like a line is one."""
        clock = time.strftime("%H:%M:%S", time.localtime(record.created)) + f".{int(record.msecs):03d}"
        lines = getattr(record, TABLE, ())
        pairs = " ".join(f"{k}={_word(v)}" for k, v in _fields_of(record).items()) if not lines else ""
        message = visible(cut(record.getMessage(), MAX_MESSAGE_BYTES))
        line = f"{clock} {record.levelname.lower():<7} {self.tier:<9} {message}"
        line = f"{line}  {pairs}" if pairs else line
        line += "".join(f"\n  {visible(cut(row))}" for row in lines)
        if record.exc_info:
            line += "".join(f"\n  {visible(row)}" for row in _traceback(self, record.exc_info).split("\n"))
        return line


class JsonFormatter(logging.Formatter):
    """One JSON object per line: time, level, tier, logger, message, the fields, and the traceback as `exception`."""

    def __init__(self, tier: str) -> None:
        super().__init__()
        self.tier = tier

    def format(self, record: logging.LogRecord) -> str:
        """One line of JSON."""
        event: dict[str, Any] = {
            "time": f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(record.created))}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "tier": self.tier,
            "logger": record.name,
            "message": cut(record.getMessage(), MAX_MESSAGE_BYTES),
            **_fields_of(record),
        }
        if record.exc_info:
            event["exception"] = _traceback(self, record.exc_info)
        return json.dumps(event, default=str)


def configure(tier: str, environ: Mapping[str, str] | None = None) -> None:
    """Send this process's logs to standard error as `TOKENWIRE_LOG` says. Exits with status 2 on an unknown word."""
    spec = (os.environ if environ is None else environ).get("TOKENWIRE_LOG", "")
    level, form = "info", "readable"
    for word in filter(None, (w.strip().lower() for w in spec.split(","))):
        if word in LEVELS:
            level = word
        elif word in FORMS:
            form = word
        else:
            print(f"TOKENWIRE_LOG={spec!r}: {word!r} is not one of {', '.join(LEVELS + FORMS)}", file=sys.stderr)
            raise SystemExit(2)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(tier) if form == "json" else ReadableFormatter(tier))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for noisy in ("grpc", "asyncio", "urllib3", "httpx"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, logging.getLogger().level))
    logging.getLogger("grpc._common").addFilter(_unless_unreadable)


def _unless_unreadable(record: logging.LogRecord) -> bool:
    """Whether to show what gRPC says: not that a message cannot be decoded, with a traceback; who reads it says so."""
    return record.msg != "Exception deserializing message!" or logging.getLogger().isEnabledFor(logging.DEBUG)


def _fields_of(record: logging.LogRecord) -> dict[str, Any]:
    """What was attached, numbers as they are and all else as text that is not too long."""
    return {
        key: value if isinstance(value, int | float) else cut(str(value))
        for key, value in getattr(record, FIELDS, {}).items()
    }


def _traceback(formatter: logging.Formatter, exc_info: Any) -> str:
    return cut(formatter.formatException(exc_info), MAX_TRACEBACK_BYTES)


def _word(value: Any) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return json.dumps(text) if not text or not text.isprintable() or any(c in text for c in ' "=') else text
