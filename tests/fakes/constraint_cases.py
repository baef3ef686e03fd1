"""Schemas and expressions to constrain outputs with: our own, those of the JSON Schema Test Suite, and random ones."""

import json
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import hypothesis
from hypothesis import HealthCheck, Phase
from hypothesis import strategies as st

SUITE = Path(__file__).parents[1] / "model_svc" / "grammar" / "data" / "json_schema_test_suite.json"


class Group(NamedTuple):
    """A schema of the suite."""

    keyword: str
    description: str
    schema: Any
    tests: list[tuple[Any, bool]]
    """Instances, and whether they are valid."""


@cache
def suite_groups() -> list[Group]:
    """Those of the JSON Schema Test Suite that need no network, no other dialect and no annotations."""
    lines = json.loads(SUITE.read_text())
    return [Group(g["keyword"], g["description"], g["schema"], [(i, v) for i, v in g["tests"]]) for g in lines]


def closed(properties: dict[str, Any], *optional: str, **more: Any) -> dict[str, Any]:
    """An object of these properties and no others."""
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False, **more}


SHORT = {"type": "string", "maxLength": 12}
SMALL = {"type": "integer", "minimum": -99, "maximum": 999}
KIND = {"enum": ["alpha", "beta", "gamma delta"]}

OWN_SCHEMAS: list[Any] = [
    {"type": "boolean"}, {"type": "null"}, {"type": "integer", "minimum": 0, "maximum": 7},
    {"type": "integer", "exclusiveMinimum": -5, "exclusiveMaximum": 5},
    {"type": "integer", "multipleOf": 7, "maximum": 700}, {"type": "number", "minimum": 0.5, "maximum": 2.25},
    {"type": ["null", "boolean"]}, SMALL, SHORT, KIND, {"const": {"a": [1, None, "x"]}}, {"const": "grün 😀"},
    {"enum": [1, "1", None, True, [1, 2], {"k": "v"}]}, {"type": "string", "minLength": 3, "maxLength": 6},
    {"type": "string", "pattern": "^[a-z]{2,8}$"}, {"type": "string", "pattern": "^\\d{3}-\\d{4}$"},
    {"type": "string", "pattern": "^(ab|c+d){1,4}$", "maxLength": 10}, {"type": "string", "format": "date"},
    {"type": "string", "format": "time"}, {"type": "string", "format": "ipv4"}, {"type": "string", "format": "uuid"},
    {"type": "string", "format": "date-time"}, {"type": "string", "format": "email"},
    {"type": "array", "items": SMALL, "minItems": 1, "maxItems": 4}, {"type": "array", "items": KIND, "maxItems": 3},
    {"type": "array", "prefixItems": [KIND, {"type": "boolean"}], "items": False, "minItems": 2},
    {"type": "array", "prefixItems": [SMALL], "items": {"type": "null"}, "minItems": 2, "maxItems": 4},
    {"type": "array", "items": {"type": "array", "items": {"type": "boolean"}, "maxItems": 2}, "maxItems": 2},
    closed({"n": SMALL}), closed({"n": SMALL, "s": SHORT}), closed({"a": {"type": "boolean"}, "b": KIND}, "b"),
    closed({"a": SMALL, "b": SMALL, "c": SMALL}, "a", "b", "c"), closed({"x": closed({"y": closed({"z": KIND})})}),
    closed({"list": {"type": "array", "items": closed({"k": KIND, "v": SMALL}), "minItems": 1, "maxItems": 2}}),
    closed({'"quoted" \\ name': SMALL, "ключ": {"type": "boolean"}, "": {"type": "null"}}),
    closed({"first name": SHORT, "age": {"type": "integer", "minimum": 0, "maximum": 130}, "kind": KIND}, "age"),
    {"type": "object", "properties": {"a": SMALL}, "required": ["a"], "additionalProperties": {"type": "boolean"},
      "maxProperties": 2},
    {"type": "object", "additionalProperties": SMALL, "minProperties": 1, "maxProperties": 2},
    {"type": "object", "patternProperties": {"^x-[a-z]{1,3}$": SMALL}, "additionalProperties": False,
      "maxProperties": 2},
    {"anyOf": [{"type": "integer", "minimum": 0, "maximum": 9}, {"type": "string", "maxLength": 3}, {"type": "null"}]},
    {"oneOf": [closed({"type": {"const": "a"}, "n": SMALL}), closed({"type": {"const": "b"}, "s": SHORT})]},
    {"allOf": [{"type": "integer"}, {"minimum": 10}, {"maximum": 20}]},
    {"allOf": [closed({"a": SMALL, "b": KIND}), {"properties": {"a": {"minimum": 5}}}]},
    {"$ref": "#/$defs/p", "$defs": {"p": closed({"x": SMALL, "y": {"$ref": "#/$defs/k"}}), "k": KIND}},
    {"$ref": "#/$defs/tree", "$defs": {"tree": closed({"v": SMALL,
      "next": {"anyOf": [{"$ref": "#/$defs/tree"}, {"type": "null"}]}})}},
    {"definitions": {"a/b": SMALL}, "type": "array", "items": {"$ref": "#/definitions/a~1b"}, "minItems": 1,
      "maxItems": 3},
    closed({"when": {"type": "string", "format": "date"}, "where": closed({"lat": {"type": "number", "minimum": -90,
      "maximum": 90}})}),
    closed({f"p{number}": {"type": "boolean"} for number in range(8)}),
    closed({"status": {"const": "ok"}, "items": {"type": "array", "items": {"anyOf": [SMALL, KIND]}, "maxItems": 3}}),
    closed({"tags": {"type": "array", "items": {"type": "string", "pattern": "^[a-z]+$", "maxLength": 6},
      "maxItems": 3}}),
]  # fmt: skip

REGEXES = [
    "yes|no", "[a-f]{3}-[0-9]{2}(x|yy)", r"\d{4}-\d{2}-\d{2}", r"(\d{1,3}\.){3}\d{1,3}",
    r"[A-Z][a-z]{1,7}( [A-Z][a-z]{1,7})?", r"[a-z]{1,8}@[a-z]{1,8}\.(com|org|net)", r"#[0-9a-fA-F]{6}",
    r"\+?[0-9]{6,12}", r"[01]{8}", r"(a|b){3,6}c?", r"(foo|bar|baz)(,(foo|bar|baz)){0,2}",
    r"-?(0|[1-9][0-9]{0,3})(\.[0-9]{1,2})?", r"\(\d{3}\) \d{3}-\d{4}", r"[^a-z]{2,4}", r"[\x20-\x7e]{1,5}",
    r"\s?[!-~]{1,4}", r"(?i)hello|WORLD", r"[à-ÿ]{1,3}", r"[\u0400-\u04ff]{2}", r"日本|中国|한국",
    r"😀{1,2}", r"a/b\\c", r"\[\d\]\{[_\d]\}", r'"[^"\n]{0,5}"', r"(ab)*c{2}", r"x{2}|x{4}|x{6}",
    r"(0?[1-9]|1[0-2]):[0-5]\d [AP]M", r"v\d+\.\d+(\.\d+)?(-rc\d)?", r"[A-Z]{2}\d{2}[A-Z0-9]{4}\d{7}",
    r"(?:https?)://[a-z]{1,6}\.io(/[a-z]{1,4}){0,2}", r"\$\d{1,3}(,\d{3})?\.\d{2}",
    r"(Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)day", r"[IVXLCDM]{1,6}", r"[\da-c_]{1,3}(-[\da-c_]{1,3}){1,2}",
    r"([a-zà-ÿ]{1,4} ){2}[A-Z]{1,4}\.", r"[^\d\s]{2,4}", r"\t\d\r?\n", r"(a(b(c(d)?)?)?)?e", r"a{0}b",
    r"(one|two|three){2}", r"^anchored$", r"[.]{3}|…", r"[-+*/]{1,2}", r"(<b>)[a-z]{1,5}(</b>)",
    r"\d{2}([-/ ])\d{2}", r"[aeiou][^aeiou]{1,2}", r"(\d)(\d)?(\d)?", r"true|false|null",
    r"SELECT [a-z]{1,5} FROM [a-z]{1,5};", r"[a-z]+?x", r"(?:a|ab)(?:c|bcd)", r"[\]\-^]{2}", r"\x41\u0042C",
    r"[0-9]{1,2}(st|nd|rd|th)", r"(?s:.){3}", r"[A-Fa-f0-9]{8}(-[A-Fa-f0-9]{4}){3}-[A-Fa-f0-9]{12}",
    r"[À-Ý][à-ý]{1,3}", r"(([a-c]{2}){1,2}[d-f]){2}", r"(|a|bb)c", r"e?(1|2)*3", r"[b-c]{2}|z",
    r"[^\x00-\x7f]", r"\.{2,3}|\?!",
]  # fmt: skip

letters = st.characters(max_codepoint=0xFFFF, exclude_characters="\0", exclude_categories=["Cs"])
"""What any byte-level vocabulary can make: SmolLM2's lacks bytes of the planes beyond."""
texts = st.text(letters, max_size=6)
values = st.one_of(texts, st.integers(-(10**6), 10**6), st.booleans(), st.none())


@st.composite
def scalar_schemas(draw: st.DrawFn) -> Any:
    """Of one short value."""
    low, size = draw(st.integers(-50, 0)), draw(st.integers(0, 3))
    bounds = {"minimum": low, "maximum": low + draw(st.integers(0, 500))}
    lengths = {"minLength": size, "maxLength": size + draw(st.integers(0, 6))}
    kept = draw(st.sets(st.sampled_from([*bounds, "minLength"])))
    return draw(
        st.sampled_from([
            {"type": "integer", **{name: value for name, value in bounds.items() if name in kept}}, {"type": "number",
            "minimum": low / 4, "maximum": low / 4 + 9.5}, {"type": "string", **{name: n for name, n in lengths.items()
            if name in kept or name == "maxLength"}}, {"type": draw(st.sampled_from(["boolean", "null"]))}, {"enum":
            draw(st.lists(values, min_size=1, max_size=4, unique_by=json.dumps))}, {"const": draw(st.one_of(values,
            st.lists(values, max_size=2), st.dictionaries(texts, values, max_size=2)))},
        ])
    )  # fmt: skip


@st.composite
def array_schemas(draw: st.DrawFn, items: st.SearchStrategy[Any]) -> Any:
    """Of few items, some of them perhaps each with a schema of its own."""
    size = draw(st.integers(0, 2))
    schema = {"type": "array", "items": draw(items), "minItems": size, "maxItems": size + draw(st.integers(0, 2))}
    if draw(st.booleans()):
        schema["prefixItems"] = draw(st.lists(items, min_size=1, max_size=2))
    return schema


@st.composite
def object_schemas(draw: st.DrawFn, parts: st.SearchStrategy[Any]) -> Any:
    """Of few properties, some of them required."""
    properties = draw(st.dictionaries(texts, parts, max_size=4))
    required = [name for name in properties if draw(st.booleans())]
    schema = {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
    if draw(st.booleans()):
        return {"$ref": "#/$defs/it", "$defs": {"it": schema}}
    return schema


def schemas() -> st.SearchStrategy[Any]:
    """What is supported, of which short outputs are enough."""
    scalars = scalar_schemas()
    arrays = array_schemas(scalars)
    objects = object_schemas(st.one_of(scalars, arrays))
    either = st.lists(scalars, min_size=1, max_size=3).map(lambda found: {"anyOf": found})
    plain = objects.filter(lambda schema: "$ref" not in schema)
    return st.one_of(objects, arrays, either, array_schemas(plain), object_schemas(st.one_of(plain, scalars)))


@cache
def random_schemas(number: int) -> list[Any]:
    """So many different ones, the same each time."""
    found: dict[str, Any] = {}

    @hypothesis.settings(
        max_examples=number * 2, database=None, deadline=None, derandomize=True, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @hypothesis.given(schemas())
    def collect(schema: Any) -> None:
        found.setdefault(json.dumps(schema, sort_keys=True), schema)

    collect()
    return list(found.values())[:number]
