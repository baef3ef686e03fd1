"""Which formats by `%` a template may use, and that it takes one pass to tell."""

import pytest

from tests.tokenizer_svc.test_template_weights import USER, refusal
from tokenizer_svc.chat_template import ChatTemplate
from tokenizer_svc.template_weights import refuse_wide_percent
from tokenwire.errors import InvalidRequest


@pytest.mark.parametrize(
    "source",
    [
        "{{ ('%(' * 2000 + ')' * 6000) % {} }}",
        "{{ ('%(' + ')' * 9990)|format(1) }}",
        "{{ ('%' + '(1' * 4990) % {} }}",
        "{{ strftime_now('%(' * 250 + ')' * 500) }}",
    ],
)
def test_a_format_is_searched_in_one_pass(source: str) -> None:
    """The first would take hours where each opening bracket was tried with each closing one."""
    try:
        ChatTemplate(source, special_tokens={}).render(USER)
    except InvalidRequest as error:
        assert "formats with a width" not in str(error)


@pytest.mark.parametrize(
    "text",
    [
        "%1000d", "% 01000d", "%.1000f", "%*d", "%.*f", "%(a)1000d", "%(a) -1000d", "%(a)*d", "%(a(b)c)1000d",
        "%(a))1000d", "%(a\n)1000d", "%(a)s%(b)1000d", "%)%(a)1.1000f", "%-1000Y", "%s %1000d",
    ],
)  # fmt: skip
def test_widths_that_could_be_anything_are_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "formats with a width" in refusal(f"{{{{ {text!r} % x }}}}", monkeypatch)


@pytest.mark.parametrize("text", ["%d 1000 *", "(1) 1000 %s *", "%%(a) 100 %s", "%999d", "%(a)999d", "100%s2024", ")*"])
def test_numbers_beside_a_format_are_characters(text: str) -> None:
    refuse_wide_percent(text)
