import json
import logging
import sys

import pytest
from grpc._common import deserialize

from tokenwire.logs import FIELDS, JsonFormatter, ReadableFormatter, configure, fields, table
from tokenwire.v1 import common_pb2


def record(message: str, **values: object) -> logging.LogRecord:
    made = logging.LogRecord("x", logging.INFO, "f.py", 1, message, (), None)
    setattr(made, FIELDS, fields(**values)[FIELDS])
    return made


def test_readable_lines_carry_the_fields_and_quote_what_needs_it() -> None:
    line = ReadableFormatter("gateway").format(
        record("done", request_id="r1", error='say "no"', absent=None, t=0.123456)
    )
    assert line.endswith('info    gateway   done  request_id=r1 error="say \\"no\\"" t=0.1235')


def test_json_lines_are_objects_with_the_fields() -> None:
    event = json.loads(JsonFormatter("model").format(record("done", request_id="r1", tokens=3)))
    assert (event["tier"], event["message"], event["request_id"], event["tokens"]) == ("model", "done", "r1", 3)
    assert event["level"] == "info" and event["time"].endswith("Z")


def test_an_unknown_word_is_refused_with_what_is_allowed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        configure("model", {"TOKENWIRE_LOG": "loud"})
    assert caught.value.code == 2
    assert "'loud' is not one of debug, info" in capsys.readouterr().err


def test_grpc_adds_no_traceback_of_its_own_for_what_it_cannot_decode(capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        configure("model", {})
        deserialize(b"\xff", common_pb2.Hello.FromString)
        logging.getLogger("grpc._common").error("something else")
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
    said = capsys.readouterr().err
    assert "something else" in said and "Traceback" not in said and len(said.splitlines()) == 1


@pytest.mark.parametrize("formatter", [ReadableFormatter("gateway"), JsonFormatter("gateway")])
def test_no_line_is_as_long_as_a_client_likes(formatter: logging.Formatter) -> None:
    made = record("m" * 4_000_000, model="x" * 4_000_000, error=["y" * 4_000_000], tokens=3)
    try:
        raise ValueError("z" * 4_000_000)
    except ValueError:
        made.exc_info = sys.exc_info()
    line = formatter.format(made)
    assert len(line.encode()) < 32_000 and "4000000 bytes" in line and "tokens" in line


HOSTILE = "a\r\n12:00:01.123 info    gateway   key revoked\x1b[2J\x1b]52;c;eA==\x07\x85\u2028\u202e\x00\ud800"


def test_a_message_begins_no_line_and_steers_no_terminal() -> None:
    line = ReadableFormatter("gateway").format(record(f"{HOSTILE} failed"))
    assert line.isprintable() and len(line.splitlines()) == 1
    assert "a\\x0d\\x0a12:00:01.123 info    gateway   key revoked\\x1b[2J" in line and line.endswith(" failed")
    assert len(JsonFormatter("gateway").format(record(HOSTILE, model=HOSTILE)).splitlines()) == 1


def test_lines_of_a_traceback_look_like_no_event() -> None:
    made = record("failed")
    try:
        raise ValueError(HOSTILE + '\n12:00:01.123 info    gateway   forged\n{"tier": "gateway"}')
    except ValueError:
        made.exc_info = sys.exc_info()
    first, *rest = ReadableFormatter("gateway").format(made).split("\n")
    assert first.endswith("failed") and rest[0] == "  Traceback (most recent call last):"
    assert all(line.startswith("  ") and line.isprintable() for line in rest)
    assert "\n" not in JsonFormatter("gateway").format(made)


def test_what_would_begin_a_line_or_steer_a_terminal_is_quoted() -> None:
    for text in ("a\nb", "a\rb", "a\x1b[2Jb", "a\u2028b", "a\x85b"):
        line = ReadableFormatter("gateway").format(record("done", model=text))
        assert line.isprintable() and len(line.splitlines()) == 1


def test_a_table_stands_below_its_line_and_is_fields_in_json() -> None:
    made = record("memory of cpu")
    made.__dict__ |= table([f"weights  1 MiB{HOSTILE}", "free     2 MiB"], weights_bytes=2**20, free_bytes=2**21)
    first, *rest = ReadableFormatter("engine").format(made).split("\n")
    assert first.endswith("engine    memory of cpu") and len(rest) == 2
    assert rest[0].startswith("  weights  1 MiBa\\x0d") and rest[1] == "  free     2 MiB"
    event = json.loads(JsonFormatter("engine").format(made))
    assert (event["message"], event["weights_bytes"], event["free_bytes"]) == ("memory of cpu", 2**20, 2**21)
    assert set(event) == {"time", "level", "tier", "logger", "message", "weights_bytes", "free_bytes"}
