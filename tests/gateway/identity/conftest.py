from pathlib import Path

import pytest

from gateway.identity import keyring as keyring_module
from tests.fakes.identities import Callers, Issuer


@pytest.fixture
def callers(tmp_path: Path) -> Callers:
    return Callers.write(tmp_path / "identities.json")


@pytest.fixture(scope="session")
def issuer(tmp_path_factory: pytest.TempPathFactory) -> Issuer:
    """Shared, so that one key is made: not to be changed."""
    return Issuer(tmp_path_factory.mktemp("issuer") / "jwks.json")


@pytest.fixture(autouse=True)
def files_are_looked_at_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keyring_module, "LOOK_AGAIN_S", 0.0)
