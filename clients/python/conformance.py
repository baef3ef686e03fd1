"""What `tokenwire conformance --client` drives: the client library through every case.

python clients/python/conformance.py --case NAME --target HOST:PORT [--tls-ca FILE] [--api-key KEY]
"""

import argparse
import base64
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from google.protobuf import json_format, symbol_database

from tokenwire.client import (
    BlockingSessionOutputs,
    Client,
    ClientTls,
    Finished,
    Message,
    Output,
    Session,
    Stream,
    TextDelta,
)
from tokenwire.errors import Cancelled, TokenwireError


def told(error: TokenwireError) -> dict[str, Any]:
    """An error as the kit reads it."""
    return {
        "code": error.code,
        "reason": error.reason,
        "fields": [violation.field for violation in error.violations],
        "retry_after_ms": None if error.retry_after_s is None else error.retry_after_s * 1000,
    }


def tell(index: int, output: Output) -> None:
    line: dict[str, Any] = {
        "output": index,
        "choice": output.choice,
        "text": output.text,
        "tokens": output.terminal.usage.completion_tokens,
        "reason": output.terminal.reason.name,
    }
    if output.terminal.error is not None:
        line["error"] = told(output.terminal.error)
    print(json.dumps(line))


def tell_all(streams: Iterable[BlockingSessionOutputs]) -> None:
    for index, stream in enumerate(streams):
        for output in stream.outputs():
            tell(index, output)


def tell_second(outputs: BlockingSessionOutputs) -> None:
    tell(1, outputs.outputs()[0])


def tell_stream(stream: Stream) -> None:
    try:
        for output in stream.outputs():
            tell(output.index, output)
    except TokenwireError as error:
        print(json.dumps({"error": told(error)}))


def cancel(client: Client) -> None:
    stream = client.generate("hang on")
    next(stream)
    stream.close()
    try:
        for _ in stream:
            pass
    except Cancelled as error:
        print(json.dumps({"error": told(error)}))


def session_cancel(session: Session) -> None:
    hanging, other = session.submit("hang on"), session.submit("one two three")
    next(hanging)
    hanging.cancel()
    tell_all([hanging, other])


def session_leave(session: Session) -> None:
    with session.submit("hang on") as left:
        next(left)
    tell_second(session.submit("one two"))


def session_held(session: Session) -> None:
    held, other = session.submit("a b", credit=0), session.submit("one two three")
    outputs = other.outputs()
    held.grant(2)
    tell(0, held.outputs()[0])
    tell(1, outputs[0])


def session_drain(session: Session) -> None:
    held = session.submit("hold on")
    next(held)  # with this text came the Drain: the session goes on with a new stream by itself
    tell_all([held, session.submit("one two")])


def tell_broken(held: BlockingSessionOutputs, index: int = 0) -> None:
    text = ""
    try:
        for event in held:
            match event:
                case TextDelta():
                    text += event.text
                case Finished():
                    raise SystemExit("the output ended though its stream broke")
    except TokenwireError as error:
        print(json.dumps({"output": index, "text": text, "error": told(error)}))


def refused_then_served(session: Session, text: str, **options: Any) -> None:
    try:
        session.submit(text, **options)
    except TokenwireError as error:
        print(json.dumps({"output": 0, "error": told(error)}))
    tell_second(session.submit("three"))


def session_wrong(session: Session, text: str, credit: int | None = None) -> None:
    tell_broken(session.submit(text, credit=credit))  # its stream has ended then: the next request has a new one
    tell_second(session.submit("one two"))


def session_no_hello(session: Session) -> None:
    try:
        session.submit("one two", timeout_s=5)
    except TokenwireError as error:
        print(json.dumps({"output": 0, "error": told(error)}))


def read_vectors(folder: Path) -> None:
    """Each test vector, read, written again, and compared with its JSON."""
    messages = symbol_database.Default()
    for entry in json.loads((folder / "index.json").read_text()):
        kind = messages.GetSymbol(entry["message"])
        message = kind.FromString((folder / f"{entry['name']}.binpb").read_bytes())
        from_json = json_format.Parse((folder / f"{entry['name']}.json").read_text(), kind())
        encoded = base64.b64encode(message.SerializeToString()).decode()
        print(json.dumps({"vector": entry["name"], "encoded": encoded, "json_equal": message == from_json}))


CALLS: dict[str, Any] = {
    "generate": lambda c: tell_stream(c.generate("one two three", temperature=0, max_tokens=3)),
    "prompts": lambda c: tell_stream(c.generate("one two", "lost one")),
    "chat": lambda c: tell_stream(
        c.chat([Message("system", "Be brief."), Message("user", "one two three")], temperature=0, max_tokens=3)
    ),
    "bad-field": lambda c: tell_stream(c.generate("refuse me")),
    "overloaded": lambda c: tell_stream(c.generate("overload me")),
    "deadline": lambda c: tell_stream(c.generate("hang on", timeout_s=2)),
    "deadline-text": lambda c: tell_stream(c.generate("slow words")),
    "cancel": cancel,
    "tls": lambda c: tell_stream(c.generate("one two three", max_tokens=3)),
    "key": lambda c: tell_stream(c.generate("one two three", max_tokens=3)),
}
ON_SESSIONS: dict[str, Any] = {
    "session": lambda s: tell_all([s.submit(text) for text in ("one two", "three", "four five six")]),
    "session-choices": lambda s: tell_all([s.submit("one two", num_choices=2), s.submit("three")]),
    "session-cancel": session_cancel,
    "session-leave": session_leave,
    "session-credit": lambda s: tell_all([s.submit("a b c d e f g h i j", credit=2)]),
    "session-held": session_held,
    "session-error": lambda s: tell_all([s.submit(text) for text in ("refuse me", "overload me", "one two")]),
    "session-drain": session_drain,
    "session-lost": lambda s: tell_broken(s.submit("hold on")),
    "session-future": lambda s: tell_all([s.submit("one two"), s.submit("three")]),
    "session-too-many-choices": lambda s: refused_then_served(s, "one two", num_choices=129),
    "session-bad-text": lambda s: refused_then_served(s, "one two \ud83d"),
    "session-time-limit": lambda s: (tell_all([s.submit("one")]), tell_broken(s.submit("mute", timeout_s=1), 1)),
    "session-no-hello": session_no_hello,
    "session-overrun": lambda s: session_wrong(s, "overrun", credit=2),
    "session-bad-frame": lambda s: session_wrong(s, "crooked"),
    "session-large": lambda s: tell_all([s.submit("slow " + "x" * 1_000_000) for _ in range(40)]),
    "session-many": lambda s: tell_all([s.submit(f"n{number}") for number in range(1000)]),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", default="")
    parser.add_argument("--target", default="")
    parser.add_argument("--vectors", type=Path)
    parser.add_argument("--tls-ca", default="")
    parser.add_argument("--api-key", default="")
    given = parser.parse_args()
    if given.vectors is not None:
        read_vectors(given.vectors)
        return
    tls = ClientTls(ca=given.tls_ca) if given.tls_ca else None
    with Client(given.target, api_key=given.api_key, tls=tls) as client:
        if given.case in CALLS:
            CALLS[given.case](client)
        elif given.case in ON_SESSIONS:
            with client.session() as session:
                ON_SESSIONS[given.case](session)
        else:
            print(json.dumps({"skip": f"this program does not know the case {given.case}"}))


if __name__ == "__main__":
    main()
