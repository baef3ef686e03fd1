"""How a caller's tenant stands with its limits, on every answer that was charged: OpenAI's x-ratelimit-* headers.

Source: https://platform.openai.com/docs/guides/rate-limits#rate-limits-in-headers. Knows no limits.
"""

from collections.abc import Iterator

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.limits.limiter import STANDING, Allowance, Standing


class LimitHeaders:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, and add what was learnt on the way."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        standing = Standing()
        STANDING.set(standing)

        async def send_with_limits(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *headers_of(standing)]
            await send(message)

        await self._app(scope, receive, send_with_limits)


def headers_of(standing: Standing) -> Iterator[tuple[bytes, bytes]]:
    """Name and value of each."""
    kinds: tuple[tuple[str, Allowance | None], ...] = (("requests", standing.requests), ("tokens", standing.tokens))
    for kind, allowance in kinds:
        if allowance is not None:
            yield f"x-ratelimit-limit-{kind}".encode(), str(allowance.limit).encode()
            yield f"x-ratelimit-remaining-{kind}".encode(), str(allowance.remaining).encode()
            yield f"x-ratelimit-reset-{kind}".encode(), duration(allowance.reset_s).encode()


def duration(seconds: float) -> str:
    """As OpenAI writes it: `20ms`, `1.5s`, `6m0s`."""
    if seconds < 1:
        return f"{round(seconds * 1000)}ms"
    if seconds < 60:
        return f"{seconds:.3f}".rstrip("0").rstrip(".") + "s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes}m{rest}s" if hours else f"{minutes}m{rest}s"
