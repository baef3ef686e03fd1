import pytest

from model_svc.settings import weights_of


def test_tenant_weights() -> None:
    assert weights_of("") == ()
    assert weights_of("gold=3, trial=0.5,") == (("gold", 3.0), ("trial", 0.5))
    assert weights_of("a=b=2") == (("a=b", 2.0),)


@pytest.mark.parametrize("bad", ["gold", "gold=", "gold=x", "gold=0", "gold=-1", "gold=inf", "gold=nan", "a=1,b"])
def test_bad_weights_say_what_is_allowed(bad: str) -> None:
    with pytest.raises(ValueError, match="each weight a number above 0"):
        weights_of(bad)
