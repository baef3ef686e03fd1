import os
from pathlib import Path

import pytest

from tests.fakes.tokenizers_trained import write_folder


@pytest.fixture(scope="session")
def trained_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small byte-level tokenizer and a ChatML template."""
    return write_folder(tmp_path_factory.mktemp("trained") / "tiny-model")


@pytest.fixture(scope="session")
def smollm2_folder() -> Path:
    """The default model's folder, where it is in the cache."""
    home = Path(os.environ.get("TOKENWIRE_HOME", "~/.cache/tokenwire")).expanduser()
    folder = home / "models" / "smollm2-135m-instruct"
    if not (folder / "tokenizer.json").is_file():
        pytest.skip("the default model is not in the cache; fetch it with `make model`")
    return folder
