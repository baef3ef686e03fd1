"""What HTTP clients say of an answer's form, as it goes down; refusals are in test_openai_chat."""

import asyncio
import json

import pytest

from tests.fakes.live_gateway import gateway_over_fake
from tokenwire.constraints import JSON_OBJECT, Constraint, choice, ebnf, json_schema, regex
from tokenwire.wire import options_from_wire

SCHEMA = {"type": "object", "properties": {"ä": {"type": "integer"}}}
AS_SCHEMA = json_schema(json.dumps(SCHEMA, ensure_ascii=False))
PATHS = [
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]}),
    ("/v1/completions", {"prompt": "a"}),
    ("/generate", {"inputs": "a"}),
]
FORMS: list[tuple[dict, Constraint | None]] = [
    ({"response_format": {"type": "json_object"}}, JSON_OBJECT),
    ({"response_format": {"type": "text"}}, None),
    ({"response_format": None, "structured_outputs": None}, None),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": SCHEMA}}},
        AS_SCHEMA,
    ),
    ({"structured_outputs": {"json": SCHEMA, "disable_any_whitespace": False}}, AS_SCHEMA),
    ({"structured_outputs": {"json": AS_SCHEMA.text}}, AS_SCHEMA),
    ({"structured_outputs": {"json_object": True}}, JSON_OBJECT),
    ({"structured_outputs": {"regex": "[ab]+", "choice": None}}, regex("[ab]+")),
    ({"structured_outputs": {"choice": ["yes", "no"]}}, choice("yes", "no")),
    ({"structured_outputs": {"grammar": 'root ::= "a"'}, "response_format": {"type": "text"}}, ebnf('root ::= "a"')),
]


@pytest.mark.parametrize(("path", "fields"), PATHS)
def test_every_form_goes_down_on_every_path(path: str, fields: dict) -> None:
    async def main() -> None:
        async with gateway_over_fake() as (tier, live):
            for asked, expected in FORMS:
                response = await live.http.post(path, json={**fields, **asked})
                assert response.status_code == 200, (asked, response.text)
                assert options_from_wire(tier.requests[-1].options).constraint == expected

    asyncio.run(main())


@pytest.mark.parametrize(("path", "fields"), PATHS)
@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ({"response_format": "json"}, "response_format"),
        ({"response_format": {"type": "json_object", "x": 1}}, "response_format.x"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": {"type": "json_object", "json_schema": {"schema": {}}}}, "response_format.json_schema"),
        ({"structured_outputs": {"choice": []}}, "choice"),
        ({"structured_outputs": {"choice": ["a", ""]}}, "choice"),
        ({"structured_outputs": {"grammar": ""}}, "grammar"),
        ({"structured_outputs": {"whitespace_pattern": " "}}, "structured_outputs.whitespace_pattern"),
        ({"structured_outputs": {"jsn": {}}}, "structured_outputs.jsn"),
        ({"structured_outputs": {"json": 5}}, "structured_outputs.json"),
        ({"structured_outputs": {"json": "x" * 262_145}}, "json_schema"),
    ],
)  # fmt: skip
def test_what_says_no_form_is_refused_by_name(path: str, fields: dict, asked: dict, param: str) -> None:
    async def main() -> None:
        async with gateway_over_fake() as (_, live):
            response = await live.http.post(path, json={**fields, **asked})
            assert response.status_code == 400, response.text
            assert response.json()["error"]["param"].startswith(param)

    asyncio.run(main())
