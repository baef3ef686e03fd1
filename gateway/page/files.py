"""The page's own files: HTML, CSS and JavaScript of this package, as they are, with the head that browsers get.

They are read once and say nothing of this server. Does not know who asks.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import PurePosixPath

from starlette.requests import Request
from starlette.responses import Response

MEDIA_TYPES: Mapping[str, str] = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
INDEX = "index.html"
INDEX_PATH = "/"
PREFIX = "/page/"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
"""Nothing runs but the page's own files, nothing is asked but this server, and no text becomes markup."""
HEADERS: Mapping[str, str] = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "cache-control": "no-cache",  # kept, and asked for again by its ETag
}


@dataclass(frozen=True, slots=True)
class PageFile:
    """One file."""

    content: bytes
    media_type: str
    etag: str

    def answer(self, request: Request) -> Response:
        """The file, or 304 where the caller has it already."""
        headers = {**HEADERS, "etag": self.etag}
        if has_etag(request.headers.get("if-none-match", ""), self.etag):
            return Response(status_code=304, headers=headers)
        return Response(self.content, media_type=self.media_type, headers=headers)


def has_etag(if_none_match: str, etag: str) -> bool:
    """Whether a field If-None-Match names this ETag (https://www.rfc-editor.org/rfc/rfc9110#name-if-none-match)."""
    given = {word.strip().removeprefix("W/") for word in if_none_match.split(",")}
    return etag in given or "*" in given


def page_files() -> dict[str, PageFile]:
    """All of them, by path."""
    found: dict[str, PageFile] = {}
    for entry in files(__package__).joinpath("static").iterdir():
        media_type = MEDIA_TYPES.get(PurePosixPath(entry.name).suffix)
        if media_type is not None:
            content = entry.read_bytes()
            etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
            path = INDEX_PATH if entry.name == INDEX else PREFIX + entry.name
            found[path] = PageFile(content, media_type, etag)
    return found
