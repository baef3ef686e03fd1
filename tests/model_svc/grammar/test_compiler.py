"""Constraints from what the client sent to a verdict: what is refused, with which place, and what that costs."""

import asyncio
import json
import re
import sys
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from traceback import walk_tb
from typing import Any

import pytest

from model_svc.grammar import compiler
from model_svc.grammar.compiler import GrammarCompiler, verdict_on
from model_svc.grammar.library import new_matcher
from model_svc.grammar.vocabulary import load_vocabulary, vocabulary_of
from tests.fakes.tokenizers_trained import TRAINED
from tests.model_svc.grammar.conftest import Trained
from tokenwire.constraints import (
    JSON_OBJECT,
    CallForm,
    Calls,
    Constraint,
    ConstraintForm,
    FreeText,
    choice,
    ebnf,
    json_schema,
    regex,
)
from tokenwire.errors import FailedPrecondition, InvalidRequest, Overloaded, TokenwireError


class Counted:
    """Metrics that a test can look at."""

    def __init__(self) -> None:
        self.num_compiled = self.num_refused = self.num_remembered = 0

    def compiled(self, form: ConstraintForm, took_s: float, *, refused: bool) -> None:
        assert took_s > 0
        self.num_compiled += 1
        self.num_refused += refused

    def remembered(self) -> None:
        self.num_remembered += 1


def schema(value: Any) -> Constraint:
    return json_schema(json.dumps(value))


GOOD = [
    JSON_OBJECT, json_schema("true"), schema({}), schema({"type": ["integer", "null"], "minimum": 3}),
    schema({"$ref": "#/$defs/node", "$defs": {"node": {"properties": {"next": {"$ref": "#/$defs/node"}}}}}),
    schema({"type": "string", "format": "date-time"}), regex(r"^[a-z]+(/\d{2})?$"), regex(r"\w+é?"),
    choice("yes", "no"),
    choice(*(f"option {number}" for number in range(4096))), ebnf('root ::= "a" root | "b"'), ebnf('start: "a"+'),
    schema({"oneOf": [{"type": "string"}, {"type": "integer"}]}), schema({"x-guidance": 5, "title": "unknown words"}),
]  # fmt: skip


@pytest.mark.parametrize("constraint", GOOD, ids=lambda c: f"{c.form.value} {(c.text or str(len(c.texts)))[:40]}")
def test_what_is_supported_compiles(trained: Callable[[str], Trained], constraint: Constraint) -> None:
    verdict, _ = verdict_on(constraint, trained("byte_level_bpe")[1])
    assert verdict.error is None, verdict.error
    assert verdict.take()


DEEP: Any = {"type": "string"}
for _ in range(200):
    DEEP = {"properties": {"a": DEEP}}

BAD = [
    (schema({"properties": {"a": {"items": {"uniqueItems": True}}}}), "at /properties/a/items/uniqueItems: not s"),
    (schema({"properties": {"a": {"type": "strin"}}}), "at /properties/a: Invalid type: strin"),
    (schema({"properties": {"a/b": {"pattern": "["}}}), "at /properties/a~1b/pattern: regex parse error"),
    (schema({"anyOf": [{"type": "string"}, {"format": "nope"}]}), "at /anyOf/1/format: Unknown format: nope"),
    (schema({"properties": {"q": {"$ref": "#/$defs/x"}}}), "at /properties/q/$ref: "),
    (schema({"$ref": "http://example.org/schema"}), "at /$ref: "),
    (schema({"items": {"minimum": "5"}}), "at /items/minimum: "),
    (schema({"$defs": {"a": {"not": {}}}, "properties": {"z": {"$ref": "#/$defs/a"}}}), "at /$defs/a/not: not s"),
    (schema({"oneOf": [{"type": "string"}, {"minLength": 2}]}), "at /oneOf: oneOf is supported where"),
    (schema({"x-guidance": {"lenient": True}, "not": {}}), "at /not: not supported"),
    (schema({"x-guidance": {"coerce_one_of": True}, "oneOf": [{}, {}]}), "at /oneOf: "),
    (schema({"properties": {str(n): {} for n in range(1001)}}), "at /properties: 1001 properties are too many"),
    (schema(DEEP), "recursion limit"),
    (schema({"enum": []}), "at the root of the schema: Unsatisfiable schema"),
    (schema({"$ref": "#"}), "no text satisfies it"),
    (schema(False), "is not a schema"), (schema(7), "is not a schema"), (json_schema("{"), "not JSON: "),
    (json_schema("[" * 100_000), "not JSON: it is nested too deeply"), (json_schema('{"const": NaN}'), "no NaN"),
    (json_schema('{"const": %s}' % ("9" * 6000)), "6000 digits is too long"),
    (json_schema('{"const": 1e999}'), "too large for a number"),
    (regex("[a-"), "unclosed character class"), (regex("(?=a)b"), "look-around"), (regex(r"(a)\1"), "backreferences"),
    (ebnf("root ::= ("), "line 1, column 6"), (ebnf("start: ("), "Expected token"), (ebnf("root ::= root"), "no text"),
    (regex("(((a{1,10}){1,10}){1,10}){1,10}"), "too complex"),
]  # fmt: skip


@pytest.mark.parametrize(("constraint", "words"), BAD, ids=lambda value: value[:40] if isinstance(value, str) else "")
def test_what_is_not_is_refused_with_field_and_place(
    trained: Callable[[str], Trained], constraint: Constraint, words: str
) -> None:
    verdict, _ = verdict_on(constraint, trained("byte_level_bpe")[1])
    with pytest.raises(InvalidRequest) as caught:
        verdict.take()
    (violation,) = caught.value.violations
    assert violation.field == f"options.constraint.{constraint.form.value}"
    assert words in violation.description
    assert "tokenwire-part" not in violation.description and len(violation.description) < 600


def test_a_text_that_the_vocabulary_cannot_make_is_refused(trained: Callable[[str], Trained]) -> None:
    tokenizer, vocabulary = trained("unigram")
    missing = next(c for c in "~^%$#@!&=+" if c not in "".join(tokenizer.get_vocab()))
    verdict, _ = verdict_on(choice(missing), vocabulary)
    assert verdict.error is not None and "no text" in verdict.error.message


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    TRAINED["byte_level_bpe"]().save(str(folder / "tokenizer.json"))
    return folder


def loaded(folder: Path | None) -> tuple[GrammarCompiler, Counted]:
    counted = Counted()
    made = GrammarCompiler(folder, counted)
    made.load(439)
    return made, counted


def test_each_constraint_is_compiled_once_and_good_and_bad_verdicts_are_remembered(folder: Path) -> None:
    async def main() -> None:
        made, counted = loaded(folder)
        assert made.known(None) == ""
        assert made.known(regex("a+")) is None
        grammars = await asyncio.gather(*(made.compile(regex("a+")) for _ in range(20)))
        assert set(grammars) == {made.known(regex("a+"))}
        for _ in range(3):
            with pytest.raises(InvalidRequest):
                await made.compile(regex("["))
        assert (counted.num_compiled, counted.num_refused) == (2, 1)
        assert counted.num_remembered == 1 + 2
        made.close()

    asyncio.run(main())


def test_what_is_remembered_is_bounded_by_number_and_size(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        made, counted = loaded(folder)
        vocabulary = load_vocabulary(folder, 439)
        monkeypatch.setattr(compiler, "NUM_KEPT", 3)
        for number in range(5):
            await made.compile(choice(f"text {number}"))
        await made.compile(choice("text 2"))
        assert counted.num_compiled == 5
        await made.compile(choice("text 1"))
        assert counted.num_compiled == 6
        monkeypatch.setattr(compiler, "MAX_KEPT_BYTES", 2 * verdict_on(choice("text 1"), vocabulary)[0].num_bytes)
        await made.compile(choice("next 1"))
        assert made.known(choice("text 1")) is not None
        assert made.known(choice("text 2")) is None
        made.close()

    asyncio.run(main())


FORMS = tuple(
    CallForm(f"<call {number:03}>" + "b" * 900, "{}", "a" * 900, f"tools[{number}]" + "f" * 900)
    for number in range(256)
)


@pytest.mark.parametrize(
    "constraint",
    [
        Constraint(ConstraintForm.CALLS, calls=Calls(FORMS, "s" * 1000, 2)),
        choice(*("." * 15 + f"{number}" for number in range(4000))),
        choice("\N{GRINNING FACE}" + "a" * 60_000),
        schema({"properties": {"a" * 100_000: {"type": "string"}}}),
        schema({"properties": {"a" * 100_000: {"type": "nothing"}}}),
    ],
    ids=["calls", "choice", "wide characters", "schema", "refused"],
)
def test_what_a_verdict_takes_is_counted(trained: Callable[[str], Trained], constraint: Constraint) -> None:
    """What is remembered is the constraint, its grammar, and what is wrong with it."""
    verdict, _ = verdict_on(constraint, trained("byte_level_bpe")[1])
    texts = [constraint.text, *constraint.texts, verdict.grammar]
    if constraint.calls is not None:
        texts.append(constraint.calls.separator)
        texts += [text for f in constraint.calls.forms for text in (f.before, f.schema_json, f.after, f.field)]
    if verdict.error is not None:
        texts += [verdict.error.message, *(each.description for each in verdict.error.violations)]
    assert sum(map(sys.getsizeof, texts)) <= verdict.num_bytes < 2 * sum(map(sys.getsizeof, texts))


def test_a_refusal_that_is_remembered_holds_nothing_of_those_that_met_it(trained: Callable[[str], Trained]) -> None:
    verdict, _ = verdict_on(json_schema("{"), trained("byte_level_bpe")[1])
    for _ in range(3):
        with pytest.raises(InvalidRequest) as caught:
            verdict.take()
        assert len(list(walk_tb(caught.tb))) == 2 and caught.value.__context__ is None


def test_too_many_that_wait_are_refused_and_nothing_is_stalled(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()
    real = compiler.verdict_on

    def slow(*arguments: Any) -> Any:
        assert release.wait(20)
        return real(*arguments)

    async def main() -> None:
        made, _ = loaded(folder)
        await made.compile(choice("known"))
        monkeypatch.setattr(compiler, "verdict_on", slow)
        monkeypatch.setattr(compiler, "MAX_WAITING", 4)
        waiting = [asyncio.ensure_future(made.compile(choice(f"text {number}"))) for number in range(4)]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded) as caught:
            await made.compile(choice("one more"))
        assert caught.value.retry_after_s
        assert await made.compile(choice("known"))
        waiting[0].cancel()
        release.set()
        assert all(await asyncio.gather(*waiting[1:]))
        made.close()

    asyncio.run(main())


def test_without_a_model_or_a_tokenizer_every_constraint_is_refused_with_the_reason(tmp_path: Path) -> None:
    async def main() -> None:
        for place, words in ((None, "mock engine"), (tmp_path, "no tokenizer.json")):
            made, _ = loaded(place)
            assert await made.compile(None) == ""
            with pytest.raises(FailedPrecondition, match=words):
                await made.compile(JSON_OBJECT)
            made.close()

    asyncio.run(main())


class Asked:
    """What a caller holds while it asks."""


def test_a_remembered_refusal_holds_nothing_of_those_who_were_refused(folder: Path) -> None:
    async def main() -> None:
        for place, constraint in ((None, JSON_OBJECT), (folder, regex("("))):
            made, _ = loaded(place)
            with pytest.raises(TokenwireError):
                await made.compile(constraint)

            def ask(made: GrammarCompiler = made, constraint: Constraint = constraint) -> weakref.ref[Asked]:
                asked = Asked()
                with suppress(TokenwireError):
                    made.known(constraint)
                    pytest.fail("it was not refused")
                return weakref.ref(asked)

            assert [ask()() for _ in range(3)] == [None] * 3
            made.close()

    asyncio.run(main())


@pytest.mark.parametrize("special", [True, False])
def test_the_form_begins_behind_free_text_where_that_is_said(special: bool) -> None:
    """The closing marker is a special token of the vocabulary, or text like any other."""
    opening, closing = ("[T]", "[/T]") if special else ("<think>", "</think>")
    tokens = {code: bytes([code]) for code in range(128)} | {130: b"[T]", 131: b"[/T]"}
    known = vocabulary_of(tokens, {"[T]": 130, "[/T]": 131}, 132)

    def accepts(before: FreeText, text: str) -> bool:
        verdict, _ = verdict_on(replace(regex("[ab]{2}"), before=before), known)
        ids: list[int] = []
        for piece in re.split(r"(\[/?T\])", text):
            ids += [known.special[piece]] if piece in known.special else list(piece.encode())
        matcher = new_matcher(known, verdict.take())
        return matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()

    begun, perhaps = FreeText(opening, closing, is_open=True), FreeText(opening, closing)
    for text, if_begun, if_not in (
        ("ab", False, True),
        (f"well, ab or so{closing}ab", True, False),
        (f"{closing}\n\nab", True, False),
        (f"{opening}well{closing} \nab", not special, True),
        (f"{opening}{closing}ab", not special, True),
        (f"{opening}well", False, False),
        (f"{opening}well{closing}xy", False, False),
        (f"{opening}a{closing}b{closing}ab", False, False),
    ):
        assert accepts(begun, text) is if_begun, text
        assert accepts(perhaps, text) is if_not, text
