"""Grammars in llama.cpp's notation, as languages: which texts are in, which are not."""

import pytest

from model_svc.grammar.gbnf import is_gbnf, lark_of
from model_svc.grammar.library import new_matcher
from model_svc.grammar.source import grammar_of
from model_svc.grammar.vocabulary import Vocabulary
from tokenwire.constraints import ebnf
from tokenwire.errors import InvalidRequest


def accepts(vocabulary: Vocabulary, grammar: str, text: str) -> bool:
    matcher = new_matcher(vocabulary, grammar_of(ebnf(grammar)))
    assert not matcher.is_error(), matcher.get_error()
    return matcher.try_consume_tokens(list(text.encode())) == len(text) and matcher.is_accepting()


IN_AND_OUT = {
    'root ::= "ab" | "a" "bc"': (["ab", "abc"], ["a", "abcc", ""]),
    'root ::= "x" root | "ab" | "a" "bc"': (["ab", "xxabc"], ["xa", "x"]),
    'root ::= [a-z]* "x"': (["x", "xx", "abx"], ["ab", "Xx"]),
    'root ::= "(" root ")" | [a-z]* "x"': (["x", "((axx))"], ["((x)", "(a)"]),
    'root ::= item ("," item)*  # a list\n\nitem ::= [0-9]{1,3} | "-" [0-9]{2} | "n"{2,}': (
        ["1", "123,-12,nnn"], ["1234", "-1", "n", "1,"],
    ),
    'root ::= two-words\ntwo-words ::= [^ ]+ " " [^\\n]? .': (["a b\n", "aa bc"], ["a", "a bcd"]),
    'root ::= ("a" | "b"? "c")+\n  | "d"': (["a", "cbca", "d"], ["b", "ad"]),
    'root ::= "\\"" [\\x41\\]\\-^] "\\\\" "\\t"': (['"A\\\t', '"]\\\t', '"-\\\t', '"^\\\t'], ['"B\\\t']),
    "root ::= [a-]+": (["a-a"], ["b"]),
    'root ::= "" | ws\nws ::= " " ws?': (["", "  "], ["a"]),
    'Root-1 ::= "a"\nroot ::= Root-1 root_1\nroot_1 ::= "b"': (["ab"], ["aa"]),
    'start: "a" b\nb: /x+/': (["ax", "axx"], ["a"]),
}  # fmt: skip


@pytest.mark.parametrize("grammar", IN_AND_OUT)
def test_a_grammar_has_the_texts_that_it_should_have_and_no_other(letters: Vocabulary, grammar: str) -> None:
    inside, outside = IN_AND_OUT[grammar]
    for text in inside:
        assert accepts(letters, grammar, text), text
    for text in outside:
        assert not accepts(letters, grammar, text), text


@pytest.mark.parametrize(
    ("grammar", "words"),
    [
        ('root ::= ("a"', "line 1, column 6: a "),
        ('root ::= "a")', 'line 1, column 13: there is no "("'),
        ('root ::=\n  "a" $', "line 2, column 7: '$' cannot stand here"),
        ('foo ::= "a"', "there is no rule root"),
        ('root ::= "a" bar', "column 14: there is no rule bar"),
        ('root ::= * "a"', "column 10: there is nothing before '*'"),
        ('root ::= "a"**', "nothing before '*'"),
        ('root ::= []', "an empty class"),
        ('root ::= "a"\nroot ::= "b"', "line 2, column 1: the rule root is there twice"),
        ('"x" ::= "a"\nroot ::= "b"', "a rule's name must stand before"),
        ('"a" root ::= "b"', "a rule begins with its name"),
        ('root ::= "a', "cannot stand here"),
        ("root ::= " + "(" * 101 + '"a"' + ")" * 101, "nested more than 100 deep"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_refused_with_its_place(grammar: str, words: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        lark_of(grammar)
    assert words in caught.value.violations[0].description
    assert caught.value.violations[0].field == "options.constraint.ebnf"


def test_only_a_definition_makes_it_this_notation() -> None:
    assert is_gbnf('# words\nroot ::= "a"')
    assert not is_gbnf('start: "root ::= x"')
    assert not is_gbnf("")


def test_hostile_grammars_are_read_in_time_that_grows_with_their_length() -> None:
    """Each would take minutes if it were read anew from every place."""
    for text in ("[a" * 30_000, '"' * 59_999, '"\\"' * 19_999, "(" * 60_000, "a{" * 30_000, "a " * 30_000):
        assert not is_gbnf(text)
        with pytest.raises(InvalidRequest):
            lark_of("root ::= " + text)
