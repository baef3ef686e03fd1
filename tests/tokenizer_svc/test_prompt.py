import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenizer_svc.prompt import Truncation, fit_prompt
from tokenwire.errors import InvalidRequest

BEGIN = 1000


@given(
    num_prompt=st.integers(1, 40),
    max_tokens=st.none() | st.integers(1, 40),
    truncation=st.none() | st.builds(Truncation, st.booleans(), st.integers(0, 40)),
    context=st.integers(0, 40),
    begins=st.booleans(),
)
def test_what_is_sent_on_always_fits(
    num_prompt: int, max_tokens: int | None, truncation: Truncation | None, context: int, begins: bool
) -> None:
    prompt = list(range(num_prompt))
    if begins:
        prompt[0] = BEGIN
    wanted = max_tokens or 1
    room = context - wanted if context else 10**6
    if truncation is not None and truncation.max_tokens:
        room = min(room, truncation.max_tokens)
    fits = num_prompt <= room
    try:
        sent = fit_prompt(
            prompt, max_tokens=max_tokens, truncation=truncation, max_context_tokens=context, begin_id=BEGIN
        )
    except InvalidRequest as error:
        assert not fits and (truncation is None or wanted >= context)
        assert error.violations[0].field in ("input", "options.stop.max_tokens")
        return
    assert fits or truncation is not None
    if fits:
        assert sent == prompt
    elif truncation is not None and truncation.at_end:
        assert sent == prompt[:room]
    elif begins and room > 1:
        assert sent == [BEGIN, *prompt[num_prompt - room + 1 :]]
    else:
        assert sent == prompt[num_prompt - room :]
    assert len(sent) == min(room, num_prompt)


def test_refusals_say_how_much_room_there_is() -> None:
    with pytest.raises(InvalidRequest, match="at most 4 more"):
        fit_prompt([1] * 6, max_tokens=5, truncation=None, max_context_tokens=10)
    with pytest.raises(InvalidRequest, match="has 10 tokens, the context holds 10"):
        fit_prompt([1] * 10, max_tokens=None, truncation=None, max_context_tokens=10)
    with pytest.raises(InvalidRequest, match="empty"):
        fit_prompt([], max_tokens=None, truncation=Truncation(), max_context_tokens=10)
