"""What a program must have told of an output or an error. Does not know the cases."""

from typing import Any

from tokenwire.conformance.results import expect
from tokenwire.conformance.scripted import Seen


def expect_calls(seen: Seen, *, generates: int = 0, chats: int = 0) -> None:
    """Raise CaseFailed unless so many calls came."""
    expect(len(seen.generates) == generates, f"{len(seen.generates)} calls of Generate came, not {generates}")
    expect(len(seen.chats) == chats, f"{len(seen.chats)} calls of Chat came, not {chats}")


def expect_streams(seen: Seen, *texts: list[str]) -> None:
    """Raise CaseFailed unless these Submits came, by session."""
    found = [[submit.request.text for submit in each.submits] for each in seen.sessions]
    expect(len(found) == len(texts), f"{len(found)} sessions came, not {len(texts)}")
    expect(found == list(texts), f"the streams were sent {found}")


def expect_told(output: dict[str, Any], *, reason: str, tokens: int | None = None) -> None:
    """Raise CaseFailed unless an output was told so."""
    expect(output.get("reason") == reason, f"reason was told as {output.get('reason')!r}, sent was {reason}")
    if tokens is not None:
        expect(output.get("tokens") == tokens, f"tokens were told as {output.get('tokens')!r}, usage says {tokens}")


def expect_out_of_time(output: dict[str, Any]) -> None:
    """Raise CaseFailed unless an output was told to have ended with its time."""
    error = output.get("error") or {}
    ended = output.get("reason") == "DEADLINE" or error.get("code") == "DEADLINE_EXCEEDED"
    expect(ended, f"the output was told as {output}, and its time had run out")


def expect_error(
    error: Any, *, code: str, reason: str = "", fields: list[str] | None = None, retry_after_ms: float | None = None
) -> None:
    """Raise CaseFailed unless an error was told so."""
    expect(isinstance(error, dict), f"no error was told, sent was {code}")
    expect(error.get("code") == code, f"the error's code was told as {error.get('code')!r}, not {code}")
    expect(not reason or error.get("reason") == reason, f"its reason was told as {error.get('reason')!r}, not {reason}")
    if fields is not None:
        expect(error.get("fields") == fields, f"its fields were told as {error.get('fields')!r}, not {fields}")
    if retry_after_ms is not None:
        told = error.get("retry_after_ms")
        expect(told == retry_after_ms, f"its retry_after_ms was told as {told!r}, not {retry_after_ms:g}")
