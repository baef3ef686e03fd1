import asyncio
import re
from pathlib import Path

import pytest

from gateway.page.files import POLICY, has_etag, page_files
from tests.fakes.live_gateway import gateway_over_fake, live_gateway
from tests.fakes.tokenizer_tier import fake_tokenizer_tier

STATIC = Path(__file__).parents[3] / "gateway" / "page" / "static"


def test_every_file_is_served_as_it_is_with_a_strict_policy() -> None:
    async def main() -> None:
        async with gateway_over_fake() as (_, live):
            paths = {"/" if file.name == "index.html" else f"/page/{file.name}": file for file in STATIC.iterdir()}
            assert {"/", "/page/main.js", "/page/page.css", "/page/icon.svg"} <= paths.keys() == page_files().keys()
            for path, file in paths.items():
                response = await live.http.get(path)
                assert response.status_code == 200 and response.content == file.read_bytes()
                assert response.headers["content-security-policy"] == POLICY
                assert response.headers["x-content-type-options"] == "nosniff"
                head = await live.http.head(path)
                assert head.status_code == 200 and not head.content and head.headers["etag"] == response.headers["etag"]
            assert (await live.http.get("/")).headers["content-type"] == "text/html; charset=utf-8"
            assert (await live.http.get("/page/main.js")).headers["content-type"] == "text/javascript; charset=utf-8"

    asyncio.run(main())


def test_what_a_browser_has_already_is_not_sent_again() -> None:
    async def main() -> None:
        async with gateway_over_fake() as (_, live):
            first = await live.http.get("/page/main.js")
            etag = first.headers["etag"]
            for given in (etag, f"W/{etag}", f'"x", {etag}', "*"):
                again = await live.http.get("/page/main.js", headers={"if-none-match": given})
                assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", etag)
                assert again.headers["content-security-policy"] == POLICY
            assert (await live.http.get("/page/main.js", headers={"if-none-match": '"x"'})).content == first.content

    asyncio.run(main())
    assert not has_etag("", '"a"')


@pytest.mark.parametrize(
    "path",
    ["/page", "/page/", "/page/index.html", "/page/nothing.js", "/page/../files.py", "/page/..%2ffiles.py",
     "/page/static/main.js", "/page/main.js/", "//page/main.js", "/page/%00", "/index.html"],
)  # fmt: skip
def test_nothing_else_is_there(path: str) -> None:
    async def main() -> None:
        async with gateway_over_fake() as (_, live):
            response = await live.http.get(path)
            assert response.status_code == (400 if path == "/page/%00" else 404), path
            assert response.json()["error"]["message"]

    asyncio.run(main())


def test_other_methods_are_refused() -> None:
    async def main() -> None:
        async with gateway_over_fake() as (_, live):
            for path in ("/", "/page/main.js", "/live"):
                for method in ("POST", "PUT", "DELETE"):
                    response = await live.http.request(method, path, content=b"x" * 1000)
                    assert response.status_code == 405, (method, path)
                    assert response.json()["error"]["type"]
            assert (await live.http.get("/")).status_code == 200

    asyncio.run(main())


def test_the_page_can_be_turned_off() -> None:
    async def main() -> None:
        async with fake_tokenizer_tier() as tier, live_gateway(tier, page=False) as live:
            for path in ("/", "/page/main.js", "/live"):
                assert (await live.http.get(path)).status_code == 404, path
            assert (await live.http.get("/v1/models")).status_code == 200

    asyncio.run(main())


def test_the_page_needs_nothing_from_elsewhere_and_nothing_inline() -> None:
    index = (STATIC / "index.html").read_text()
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\bstyle=|\bon\w+=|javascript:", index)
    known = page_files().keys()
    for file in STATIC.iterdir():
        text = file.read_text()
        addresses = set(re.findall(r"https?://[^\s\"')]+", text))
        assert addresses <= {"http://www.w3.org/2000/svg", "https://connectrpc.com/docs/protocol"}, file.name
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|localStorage|cookie", text
        )
        named = set(re.findall(r"[\"'](/page/[^\"']+)[\"']", text))
        assert named <= known, file.name
