import pytest

from model_svc.settings import ModelTierSettings, weights_of
from tokenwire.settings import SettingError, settings_from


def test_tenant_weights() -> None:
    assert weights_of("") == ()
    assert weights_of("gold=3, trial=0.5,") == (("gold", 3.0), ("trial", 0.5))
    assert weights_of("a=b=2") == (("a=b", 2.0),)


BAD = ["gold", "gold=", "gold=x", "gold=0", "gold=-1", "gold=inf", "gold=nan", "a=1,b", "a=1e-7", "a=1e7"]


@pytest.mark.parametrize("bad", BAD)
def test_bad_weights_say_what_is_allowed(bad: str) -> None:
    with pytest.raises(ValueError, match="each weight a number from 1e-06 to 1e\\+06"):
        weights_of(bad)


def test_a_tenant_has_one_weight() -> None:
    with pytest.raises(ValueError, match="'a' has two"):
        weights_of("a=1,b=2,a=2")


@pytest.mark.parametrize("bad", ["inf", "1e13", "-1", "nan"])
def test_a_window_that_would_never_open_is_refused(bad: str) -> None:
    with pytest.raises(SettingError, match="TOKENWIRE_MODEL_ADMISSION_WINDOW_MS"):
        settings_from(ModelTierSettings, "model", {}, {"TOKENWIRE_MODEL_ADMISSION_WINDOW_MS": bad})
