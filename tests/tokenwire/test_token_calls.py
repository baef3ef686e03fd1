"""How many things one call may bring, by whatever way it came."""

import pytest

from tokenwire.embeddings import MAX_INPUTS, refuse_inputs
from tokenwire.errors import InvalidRequest
from tokenwire.token_calls import MAX_ITEMS, refuse_count, refuse_counted


@pytest.mark.parametrize("number", [0, 4])
def test_none_and_too_many_are_refused_in_the_same_words(number: int) -> None:
    with pytest.raises(InvalidRequest) as caught:
        refuse_count(number, "prompts", "prompt", 3)
    assert caught.value.message == f"prompt: {number} prompts are not allowed: from 1 to 3 in one call"
    assert [violation.field for violation in caught.value.violations] == ["prompt"]
    with pytest.raises(InvalidRequest, match=f"inputs: {MAX_INPUTS + 1} inputs are not allowed: from 1 to"):
        refuse_inputs([1] * (MAX_INPUTS + 1), "inputs")


def test_texts_and_conversations_are_counted_together_and_named_by_what_is_more() -> None:
    refuse_counted(MAX_ITEMS // 2, MAX_ITEMS // 2)
    for texts, conversations, field in ((MAX_ITEMS, 1, "texts"), (1, MAX_ITEMS, "conversations")):
        with pytest.raises(InvalidRequest, match=f"{MAX_ITEMS + 1} are not allowed") as caught:
            refuse_counted(texts, conversations)
        assert [violation.field for violation in caught.value.violations] == [field]
