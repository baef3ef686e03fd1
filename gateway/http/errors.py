"""Errors over HTTP, in OpenAI's shape, from the one table in `tokenwire.errors`.

`{"error": {"message", "type", "param", "code"}}`: `code` is the stable reason in lower case, `param` the first field
that is wrong, under its HTTP name.
"""

import logging
import math
import re
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from tokenwire.errors import (
    AlreadyExists,
    Cancelled,
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    InvalidRequest,
    NotFound,
    TokenwireError,
    Unauthenticated,
    Unsupported,
    let_go,
)
from tokenwire.field_names import with_fields_renamed
from tokenwire.requests import FinishReason, Terminal

log = logging.getLogger(__name__)

HTTP_NAMES = {
    "stop_strings": "stop",
    "num_choices": "n",
    "ebnf": "grammar",
    "texts": "choice",
    "timeout_ms": "timeout",
    "request_id": "x-request-id",
}
"""Fields whose name over HTTP is not the last word of their path on the wire."""

CHALLENGE = 'Bearer realm="tokenwire"'
INVALID_TOKEN = 'error="invalid_token"'
"""What a 401 asks for (RFC 6750), and that what was sent did not do."""

PROMPT_FIELDS = {
    "/v1/chat/completions": "messages",
    "/v1/completions": "prompt",
    "/generate": "inputs",
    "/v1/embeddings": "input",
}
"""What each path calls the prompt."""

WIRE_PROMPT_FIELDS = {"input", "text", "token_ids", "conversation", "prompts", "texts", "sequences"}
"""What the tiers below and gRPC's Generate call it."""

FINAL = (Unsupported, AlreadyExists, FailedPrecondition, Cancelled)
"""Errors for which another try is of no use, though their status makes OpenAI's clients try again."""


class UnsupportedMediaType(InvalidRequest):
    """A body that does not say that it is JSON."""

    http_status, default_reason = 415, "UNSUPPORTED_MEDIA_TYPE"


class MethodNotAllowed(InvalidRequest):
    """A path that is there, asked with another method."""

    http_status, default_reason = 405, "METHOD_NOT_ALLOWED"


class RequestTimeout(InvalidRequest):
    """A request that takes too long to arrive."""

    http_status, default_reason = 408, "REQUEST_TIMEOUT"


class HeadTooLarge(InvalidRequest):
    """A request whose line and fields are over their limits."""

    http_status, default_reason = 431, "HEAD_TOO_LARGE"


CONVERSATION_NAMES = (
    (re.compile(r"(tools\[\d+\])\.parameters_json"), r"\1.function.parameters"),
    (re.compile(r"(tools\[\d+\])\.(name|description|strict)"), r"\1.function.\2"),
    (re.compile(r"(messages\[\d+\]\.tool_calls\[\d+\])\.(name|arguments)"), r"\1.function.\2"),
    (re.compile(r"(messages\[\d+\])\.reasoning"), r"\1.reasoning_content"),
    (re.compile(r"documents_json"), "documents"),
    (re.compile(r"required_tool"), "tool_choice"),
    (re.compile(r"template_arguments(_json)?"), "chat_template_kwargs"),
)
"""How fields of a conversation begin on the wire, and over HTTP; the others have one name."""


def http_name(field: str, prompt_field: str = "prompt") -> str:
    """The HTTP name of a field of the wire: `options.sampling.top_p` → `top_p`. Names of ours are left alone."""
    first, _, rest = field.partition(".")
    if first == "conversation" and rest:
        return _conversation_name(rest)
    if first.partition("[")[0] in WIRE_PROMPT_FIELDS:
        return prompt_field + (field[field.index("[") :].replace(".ids[", "[") if "[" in field else "")
    if first not in ("options", "context"):
        return field
    last = rest.rsplit(".", 1)[-1]
    return HTTP_NAMES.get(last, last)


def _conversation_name(field: str) -> str:
    for pattern, name in CONVERSATION_NAMES:
        if found := pattern.match(field):
            return found.expand(name) + field[found.end() :]
    return field


def renamed(error: TokenwireError, prompt_field: str) -> TokenwireError:
    """The same error with the names that its fields have over HTTP."""
    return with_fields_renamed(error, lambda field: http_name(field, prompt_field))


def error_object(error: TokenwireError, prompt_field: str = "prompt") -> dict[str, Any]:
    """The inside of `{"error": …}`."""
    error = renamed(error, prompt_field)
    param = error.told_violations[0].field if error.violations else None
    return {"message": error.told, "type": error.openai_type, "param": param, "code": error.reason.lower()}


def whole_seconds(retry_after_s: float) -> int:
    """As `Retry-After` says it: none too early, and never 0."""
    return max(1, math.ceil(retry_after_s))


def error_response(error: TokenwireError, prompt_field: str = "prompt") -> JSONResponse:
    """The whole answer, with `Retry-After` in whole seconds where the error knows when to come back.

    `x-should-retry` is what OpenAI's clients heed before the status. Lets the error's tracebacks go.
    """
    let_go(error)
    headers = {}
    if isinstance(error, FINAL):
        headers["x-should-retry"] = "false"
    if isinstance(error, Unauthenticated):
        headers["WWW-Authenticate"] = CHALLENGE if error.reason == "NO_CREDENTIALS" else f"{CHALLENGE}, {INVALID_TOKEN}"
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(whole_seconds(error.retry_after_s))
    body = {"error": error_object(error, prompt_field)}
    return JSONResponse(body, status_code=error.http_status, headers=headers)


def bug_response(request: Request, error: Exception) -> JSONResponse:
    """The answer to what nobody foresaw; the server logs the traceback."""
    name = f"{request.method} {request.url.path}"
    return error_response(Internal(f"{name} failed: {type(error).__name__}; the server's log has the details"))


def error_of(terminal: Terminal, *, openai: bool = True) -> TokenwireError | None:
    """The error that a terminal event is; None for an ordinary end.

    OpenAI's API has no finish_reason for time that ran out or for work that was taken back, so there both are errors.
    """
    if terminal.reason is FinishReason.ERROR:
        return terminal.error or Internal("the request failed below, which did not say why")
    if openai and terminal.reason is FinishReason.DEADLINE:
        return DeadlineExceeded(f"the time given ran out after {terminal.usage.completion_tokens} tokens")
    if openai and terminal.reason is FinishReason.CANCELLED:
        return Cancelled("the request was cancelled")
    return None


def install_error_handlers(app: FastAPI) -> None:
    """Answer every error in one shape: ours, the framework's, and bugs."""

    async def on_tokenwire_error(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, TokenwireError)
        return error_response(error, PROMPT_FIELDS.get(request.url.path, "prompt"))

    async def on_http_exception(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        response = error_response(_from_framework(request, error))
        response.headers.update(error.headers or {})
        return response

    async def on_bug(request: Request, error: Exception) -> JSONResponse:
        return bug_response(request, error)

    app.add_exception_handler(TokenwireError, on_tokenwire_error)
    app.add_exception_handler(HTTPException, on_http_exception)
    app.add_exception_handler(Exception, on_bug)


def _from_framework(request: Request, error: HTTPException) -> TokenwireError:
    if error.status_code == 404:
        return NotFound(f"there is nothing at {request.url.path}", reason="NO_SUCH_PATH")
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "another method")
        return MethodNotAllowed(f"{request.method} is not allowed at {request.url.path}: use {allowed}")
    return InvalidRequest(str(error.detail))
