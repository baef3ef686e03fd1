import pytest

from gateway.identity.identity import Identity
from tokenwire.errors import NotFound


def test_what_a_caller_may_use_is_named_and_nothing_else() -> None:
    identity = Identity(tenant="alice", models=frozenset({"mine"}), max_priority=0, admin=False)
    with pytest.raises(NotFound, match="^model 'other' does not exist.*this caller may use: mine$"):
        identity.refuse_model("other", "", ["other"])
    with pytest.raises(NotFound, match="^the request names no model; this caller may use: mine$") as refused:
        identity.refuse_model("", "", ["hidden"])
    assert "hidden" not in refused.value.message
    identity.refuse_model("", "", ["mine"])
