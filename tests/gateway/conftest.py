import pytest

from tests.tokenizer_svc.conftest import trained_folder

__all__ = ["trained_folder"]


@pytest.fixture(autouse=True)
def no_long_wait_for_tiers_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.server.FIRST_CONTACT_S", 0.2)
