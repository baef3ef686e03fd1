import json
from pathlib import Path

import pytest

from model_svc import server
from tests.fakes.tokenizers_trained import write_folder
from tests.fakes.vllm_engine import TOKENIZER


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The mock engine's model has this folder."""
    write_folder(tmp_path, TOKENIZER)
    config = {"model_type": "llama", "architectures": ["X"], "bos_token_id": 1, "pad_token_id": [2, 3]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    resolve = server.resolve
    monkeypatch.setattr(server, "resolve", lambda settings: (resolve(settings)[0], tmp_path))
    return tmp_path
