"""Grammars as llama.cpp and xgrammar write them, `root ::= "a" | b`, in the library's dialect of Lark.

Source: llama.cpp's grammars/README.md. A grammar without recursion becomes one regular expression. In any other every
character is a word of its own: the library takes the longest word that fits, so that of `"ab" | "a" "bc"` it would
never find "abc" otherwise. Reads the text once, from left to right, and says line and column of what is wrong. Does not
know what a grammar means: whether its rules can be compiled is for the library to say.
"""

import json
import re
from collections.abc import Iterator
from typing import NamedTuple

from tokenwire.errors import FieldViolation
from tokenwire.sampling import refuse

FIELD = "options.constraint.ebnf"
MAX_DEPTH = 100
"""Parentheses within parentheses, and rules within rules of a grammar that is made one expression."""
MAX_EXPRESSION_CHARS = 65_536

TOKEN = re.compile(
    r"""(?P<space>[ \t\r\n]+|\#[^\n]*)
    |(?P<define>::=)
    |(?P<name>[A-Za-z_][A-Za-z0-9_-]*)
    |(?P<string>"(?:[^"\\\n]|\\.)*")
    |(?P<class>\[(?:[^\]\\\n]|\\.)*\])
    |(?P<repeat>\{[ ]*[0-9]+[ ]*(?:,[ ]*[0-9]*[ ]*)?\})
    |(?P<sign>[|()*+?.])""",
    re.VERBOSE,
)
DEFINITION = re.compile(r"^[ \t]*[A-Za-z_][A-Za-z0-9_-]*[ \t]*::=", re.MULTILINE)
ESCAPE = re.compile(r"\\(x[0-9A-Fa-f]{2}|u[0-9A-Fa-f]{4}|U[0-9A-Fa-f]{8}|.)", re.DOTALL)
NAMED = {"n": "\n", "r": "\r", "t": "\t"}


class Token(NamedTuple):
    """One word of the grammar."""

    kind: str
    text: str
    place: int


def is_gbnf(text: str) -> bool:
    """Whether a grammar is written so, and not in Lark's way (`start: "a" | b`)."""
    return DEFINITION.search(text) is not None


def lark_of(text: str) -> str:
    """The same grammar in Lark. Raises InvalidRequest with the place of what cannot be read."""
    tokens = list(_tokens(text))
    starts = [index for index, token in enumerate(tokens) if token.kind == "define"]
    rules: dict[str, list[Token]] = {}
    if not starts or starts[0] != 1:
        _refuse(text, tokens[0].place, 'a rule begins with its name and "::="')
    for number, start in enumerate(starts):
        name = tokens[start - 1]
        end = starts[number + 1] - 1 if number + 1 < len(starts) else len(tokens)
        if name.kind != "name":
            _refuse(text, name.place, "a rule's name must stand before ::=")
        if name.text in rules:
            _refuse(text, name.place, f"the rule {name.text} is there twice")
        rules[name.text] = tokens[start + 1 : end]
        _check(text, rules[name.text], tokens[start].place)
    if "root" not in rules:
        _refuse(text, 0, "there is no rule root, with which the text begins")
    for token in tokens:
        if token.kind == "name" and token.text not in rules:
            _refuse(text, token.place, f"there is no rule {token.text}")
    expression = _expression(rules)
    if expression is not None:
        return f"start: /{expression}/\n"
    lines = [f"{_rule_name(name)}: {_body(tokens)}\n" for name, tokens in rules.items()]
    return "".join(lines) + f"start: {_rule_name('root')}\n"


def _tokens(text: str) -> Iterator[Token]:
    place = 0
    while place < len(text):
        match = TOKEN.match(text, place)
        if match is None:
            _refuse(text, place, f"{text[place]!r} cannot stand here")
            return
        if match.lastgroup != "space":
            yield Token(match.lastgroup or "", match[0], place)
        place = match.end()


def _check(text: str, tokens: list[Token], place: int) -> None:
    """Refuse parentheses, repeats and classes of one rule that do not stand where they can."""
    depth = 0
    has_item = False
    for token in tokens:
        if token.text == "(":
            depth += 1
            if depth > MAX_DEPTH:
                _refuse(text, token.place, f"parentheses are nested more than {MAX_DEPTH} deep")
            has_item = False
        elif token.text == ")":
            depth -= 1
            if depth < 0:
                _refuse(text, token.place, 'there is no "(" to this ")"')
            has_item = True
        elif token.text == "|":
            has_item = False
        elif token.kind == "repeat" or (token.kind == "sign" and token.text in "*+?"):
            if not has_item:
                _refuse(text, token.place, f"there is nothing before {token.text!r} to repeat")
            has_item = False
        else:
            has_item = True
            if token.text in ("[]", "[^]"):
                _refuse(text, token.place, "an empty class matches nothing")
    if depth:
        _refuse(text, place, 'a "(" is not closed')


def _expression(rules: dict[str, list[Token]]) -> str | None:
    """The whole grammar as a regular expression; None where a rule leads to itself, or it would be too long."""
    made: dict[str, str | None] = {}

    def of_rule(name: str, depth: int) -> str | None:
        if name not in made:
            made[name] = None  # until it is made: whoever asks for it meanwhile is part of it
            made[name] = of_tokens(rules[name], depth)
        return made[name]

    def of_tokens(tokens: list[Token], depth: int) -> str | None:
        words: list[str] = []
        size = 0
        for token in tokens:
            word = of_rule(token.text, depth + 1) if token.kind == "name" and depth < MAX_DEPTH else None
            if token.kind != "name":
                word = _expression_word(token)
            if word is None or (size := size + len(word)) > MAX_EXPRESSION_CHARS:
                return None
            words.append(f"(?:{word})" if token.kind == "name" else word)
        return "".join(words)

    return of_rule("root", 0)


def _body(tokens: list[Token]) -> str:
    """One rule's right-hand side in Lark."""
    words = " ".join(map(_lark_word, tokens))
    return words.replace(" {", "{").replace(" *", "*").replace(" +", "+").replace(" ?", "?") or '""'


def _expression_word(token: Token) -> str:
    """A word other than a rule's name, as a regular expression has it."""
    if token.kind == "string":
        return f"(?:{''.join(escaped(character) for character in ESCAPE.sub(_unescaped, token.text[1:-1]))})"
    if token.kind == "class":
        return _character_class(token)
    if token.kind == "repeat":
        return token.text.replace(" ", "")
    return {".": r"[\s\S]", "(": "(?:"}.get(token.text, token.text)


def _lark_word(token: Token) -> str:
    if token.kind == "name":
        return _rule_name(token.text)
    if token.kind == "string":
        characters = ESCAPE.sub(_unescaped, token.text[1:-1])
        letters = " ".join(json.dumps(character, ensure_ascii=False) for character in characters)
        return f"({letters})" if len(characters) != 1 else letters
    if token.kind == "class":
        return f"/{_character_class(token)}/"
    if token.kind == "repeat":
        return token.text.replace(" ", "")
    return r"/[\s\S]/" if token.text == "." else token.text


def _rule_name(name: str) -> str:
    """Lark's rules are in lower case and have no hyphens; "z" tells apart what would fall together."""
    letters = [f"z{ord(c):x}z" if not (c.islower() or c.isdigit()) or c == "z" else c for c in name]
    return "r_" + "".join(letters)


def _unescaped(match: re.Match[str]) -> str:
    escape = match[1]
    if escape[0] in "xuU" and len(escape) > 1:
        value = int(escape[1:], 16)
        return chr(value) if value < 0x110000 and not 0xD800 <= value < 0xE000 else "\N{REPLACEMENT CHARACTER}"
    return NAMED.get(escape, escape)


def _character_class(token: Token) -> str:
    """`[^a-z"]` as an expression; every character is written by its number."""
    inner = token.text[1:-1]
    negated = inner.startswith("^")
    pieces: list[str] = []
    place = int(negated)
    characters: list[tuple[str, bool]] = []
    while place < len(inner):
        match = ESCAPE.match(inner, place)
        if match is not None:
            characters.append((_unescaped(match), True))
            place = match.end()
        else:
            characters.append((inner[place], False))
            place += 1
    for index, (character, is_escape) in enumerate(characters):
        is_range = character == "-" and not is_escape and 0 < index < len(characters) - 1
        pieces.append("-" if is_range else escaped(character))
    return f"[{'^' if negated else ''}{''.join(pieces)}]"


def escaped(character: str) -> str:
    """A character as a regular expression has it."""
    if character.isascii() and character.isalnum():
        return character
    return f"\\x{{{ord(character):x}}}"


def _refuse(text: str, place: int, what: str) -> None:
    line = text.count("\n", 0, place) + 1
    column = place - (text.rfind("\n", 0, place) + 1) + 1
    refuse([FieldViolation(FIELD, f"line {line}, column {column}: {what}")])
