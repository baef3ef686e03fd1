"""Which web pages may use this port: cross-origin resource sharing (https://fetch.spec.whatwg.org/#http-cors-protocol).

Browsers ask for it; nothing here keeps other clients out. Pages of origins that are not named get no leave, and no
cookies or client certificates of a browser's are ever asked for. Knows no paths.
"""

import re
from collections.abc import Sequence

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

ORIGIN = re.compile(r"https?://[a-z0-9._-]+(:[0-9]{1,5})?|https?://\[[0-9a-f:.]+\](:[0-9]{1,5})?", re.ASCII)
ANY = "*"
MAX_AGE_S = 600
"""How long a browser need not ask again."""
READABLE = (
    "grpc-message", "grpc-status", "grpc-status-details-bin", "retry-after", "x-ratelimit-limit-requests",
    "x-ratelimit-limit-tokens", "x-ratelimit-remaining-requests", "x-ratelimit-remaining-tokens",
    "x-ratelimit-reset-requests", "x-ratelimit-reset-tokens", "x-request-id", "x-should-retry",
)  # fmt: skip
"""Fields of an answer's head that pages may read besides those that they always may."""


def origins_of(text: str) -> str:
    """`"https://a.example,http://localhost:5173"` or `"*"`, tidied; raises ValueError for anything else."""
    origins = [word.strip() for word in text.split(",") if word.strip()]
    if ANY in origins and len(origins) > 1 or not all(each == ANY or ORIGIN.fullmatch(each) for each in origins):
        raise ValueError("origins like https://app.example or http://localhost:5173, separated by commas, or *")
    return ",".join(dict.fromkeys(origins))


def with_cors(app: ASGIApp, origins: Sequence[str]) -> ASGIApp:
    """The application, which pages of these origins may use; without any, no pages but its own."""
    if not origins:
        return app
    return CORSMiddleware(
        app,
        allow_origins=origins,
        allow_methods=["GET", "HEAD", "POST"],
        allow_headers=["*"],  # clients have many of their own, and an origin that is trusted may send them
        expose_headers=READABLE,
        max_age=MAX_AGE_S,
    )
