"""Reads a request's body, bounded, and checks it against its model. Does not know what the fields mean."""

import asyncio
import reprlib
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from gateway.http.errors import RequestTimeout, UnsupportedMediaType
from gateway.http.framing import ANNOUNCED, Announced
from gateway.settings import GatewaySettings
from tokenwire.errors import Cancelled, FieldViolation, InvalidRequest, MessageTooLarge

MAX_VIOLATIONS = 16
MAX_SHOWN_CHARS = 80
SHOWN = reprlib.Repr()
SHOWN.maxstring = SHOWN.maxother = SHOWN.maxlong = MAX_SHOWN_CHARS
SHOWN.maxlist = SHOWN.maxdict = 16
SHOWN.maxlevel = 2  # more would multiply the sixteen

OTHER_WORDS = {"deadline": "timeout, in seconds", "lora": "the adapter's name as model"}
"""What is meant by words that others use."""

NOT_BUILT = "is not built in this release; leave it out"


class Body(BaseModel):
    """Base of all bodies: no type is bent into another, NaN is no number.

    Fields without a name here are in `model_extra`; `refuse_extras` judges them.
    """

    model_config = ConfigDict(
        extra="allow", strict=True, allow_inf_nan=False, protected_namespaces=(), use_attribute_docstrings=True
    )


B = TypeVar("B", bound=Body)


async def read_body(request: Request, model: type[B], settings: GatewaySettings) -> B:
    """Read and check a JSON body. Raises InvalidRequest and its HTTP kin: 400, 408, 413, 415."""
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != "application/json":
        raise UnsupportedMediaType(f"Content-Type {content_type!r} is not allowed: send application/json")
    encoding = request.headers.get("content-encoding", "").strip().lower()
    if encoding not in ("", "identity"):
        raise UnsupportedMediaType(f"Content-Encoding {encoding!r:.80} is not allowed: send the body as it is")
    data = await read_bytes(request, settings.max_body_bytes, settings.body_timeout_s)
    try:
        return model.model_validate_json(data)
    except ValidationError as error:
        raise _refusal(error.errors(include_url=False)) from None


def body_of(values: dict[str, Any], model: type[B]) -> B:
    """The same check of values that came in another way. Raises InvalidRequest."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise _refusal(error.errors(include_url=False)) from None


async def read_bytes(request: Request, max_bytes: int, limit_s: float) -> bytes:
    """The whole body. Raises MessageTooLarge, RequestTimeout, and Cancelled when the client goes."""
    length = request.headers.get("content-length", "")
    if length.isascii() and length.isdigit() and int(length) > max_bytes:
        raise _too_large(max_bytes)
    announced: Announced = request.scope.get("extensions", {}).get(ANNOUNCED, Announced())
    data, more = bytearray(), True
    try:
        async with asyncio.timeout(limit_s):
            while more:
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise Cancelled("the client went away before its request was complete")
                data += message.get("body", b"")
                more = message.get("more_body", False)
                if max(len(data), announced.num_bytes) > max_bytes:
                    raise _too_large(max_bytes)
    except TimeoutError:
        raise RequestTimeout(f"the body did not come within {limit_s:g} s (body_timeout_s)") from None
    return bytes(data)


def _too_large(max_bytes: int) -> MessageTooLarge:
    return MessageTooLarge(f"the body is larger than {max_bytes} bytes, the most allowed (max_body_bytes)")


def _refusal(errors: list[ErrorDetails]) -> InvalidRequest:
    if errors[0]["type"] == "json_invalid":
        return InvalidRequest(f"the body is not valid JSON: {errors[0]['msg']}", reason="MALFORMED_JSON")
    if not errors[0]["loc"]:
        return InvalidRequest("the body must be a JSON object", reason="MALFORMED_JSON")
    violations = []
    for error in errors[:MAX_VIOLATIONS]:
        if error["type"] == "missing":
            description = "is required"
        elif error["type"] == "too_long":
            description = f"{len(error['input'])} are too many: at most {error['ctx']['max_length']}"
        else:
            description = f"{_shown(error['input'])} is not allowed: {error['msg'].removeprefix('Input ')}"
        violations.append(FieldViolation(_path(error["loc"]), description))
    return InvalidRequest("; ".join(f"{v.field}: {v.description}" for v in violations), violations=violations)


def _path(loc: tuple[int | str, ...]) -> str:
    """`("messages", 0, "role")` → `messages[0].role`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc).lstrip(".")


def _shown(value: Any) -> str:
    """The value, or its beginning: it may be as long as a body."""
    text = SHOWN.repr(value)
    return text if len(text) <= MAX_SHOWN_CHARS else text[:MAX_SHOWN_CHARS] + "…"


def refuse_extras(
    body: BaseModel, unbuilt: dict[str, tuple[Any, ...]], harmless: frozenset[str] = frozenset(), prefix: str = ""
) -> None:
    """Raise InvalidRequest for a field that is unknown, or known and not built.

    `unbuilt`: names with the values that change nothing, which are accepted. `harmless`: names that ask for nothing of
    the answer and are ignored.
    """
    for name, value in (body.model_extra or {}).items():
        if name in harmless or (name in unbuilt and any(_same(value, neutral) for neutral in unbuilt[name])):
            continue
        field = prefix + name
        if name in unbuilt:
            raise InvalidRequest.of(field, NOT_BUILT, reason="UNSUPPORTED_PARAMETER")
        hint = f": use {OTHER_WORDS[name]}" if name in OTHER_WORDS else ""
        raise InvalidRequest.of(field, f"there is no such field{hint}", reason="UNKNOWN_PARAMETER")


def _same(value: Any, neutral: Any) -> bool:
    return isinstance(value, bool) == isinstance(neutral, bool) and bool(value == neutral)
