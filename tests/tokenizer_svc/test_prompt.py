import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenizer_svc.prompt import fit_prompt
from tokenwire.errors import InvalidRequest


@given(
    num_prompt=st.integers(1, 40),
    max_tokens=st.none() | st.integers(1, 40),
    truncate=st.booleans(),
    context=st.integers(0, 40),
)
def test_what_is_sent_on_always_fits(num_prompt: int, max_tokens: int | None, truncate: bool, context: int) -> None:
    prompt = list(range(num_prompt))
    wanted = max_tokens or 1
    fits = not context or num_prompt + wanted <= context
    try:
        sent = fit_prompt(prompt, max_tokens=max_tokens, truncate=truncate, max_context_tokens=context)
    except InvalidRequest as error:
        assert not fits and (not truncate or wanted >= context)
        assert error.violations[0].field in ("input", "options.stop.max_tokens")
    else:
        assert fits or truncate
        assert sent == (prompt if fits else prompt[-(context - wanted) :])


def test_refusals_say_how_much_room_there_is() -> None:
    with pytest.raises(InvalidRequest, match="at most 4 more"):
        fit_prompt([1] * 6, max_tokens=5, truncate=False, max_context_tokens=10)
    with pytest.raises(InvalidRequest, match="has 10 tokens, the context holds 10"):
        fit_prompt([1] * 10, max_tokens=None, truncate=False, max_context_tokens=10)
    with pytest.raises(InvalidRequest, match="empty"):
        fit_prompt([], max_tokens=None, truncate=True, max_context_tokens=10)
