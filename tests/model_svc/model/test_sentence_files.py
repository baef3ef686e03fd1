from pathlib import Path

import pytest

from model_svc.model.sentence_files import EmbeddingDefaults, embedding_defaults
from tests.fakes.tiny_encoders import write_modules
from tokenwire.embeddings import Pooling
from tokenwire.errors import FailedPrecondition


@pytest.mark.parametrize(
    ("said", "pooling"),
    [
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, Pooling.MEAN),
        ({"pooling_mode_cls_token": True}, Pooling.CLS),
        ({"pooling_mode_lasttoken": True, "include_prompt": True, "word_embedding_dimension": 9}, Pooling.LAST),
        ({"pooling_mode": "mean", "embedding_dimension": 4}, Pooling.MEAN),
        ({"pooling_mode": "cls"}, Pooling.CLS),
    ],
)
def test_poolings(tmp_path: Path, said: dict[str, object], pooling: Pooling) -> None:
    write_modules(tmp_path, "Transformer", "Pooling", "Normalize", **said)
    assert embedding_defaults(tmp_path) == EmbeddingDefaults(pooling)
    assert embedding_defaults(tmp_path).pooling_of(generates=True) is pooling


@pytest.mark.parametrize(
    ("kinds", "said", "obstacle"),
    [
        (("Transformer", "Pooling"), {"pooling_mode_max_tokens": True}, "pooling_mode_max_tokens"),
        (("Transformer", "Pooling"), {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}, "only one of"),
        (("Transformer", "Pooling"), {}, "its pooling is none"),
        (("Transformer", "Pooling"), {"pooling_mode": "weightedmean"}, "'weightedmean'"),
        (("Transformer", "Pooling", "Dense"), {"pooling_mode_mean_tokens": True}, "'Dense', which is not computed"),
    ],
)
def test_what_is_not_computed(tmp_path: Path, kinds: tuple[str, ...], said: dict[str, object], obstacle: str) -> None:
    write_modules(tmp_path, *kinds, **said)
    found = embedding_defaults(tmp_path)
    assert obstacle in found.obstacle and found.pooling is None
    assert found.pooling_of(generates=True) is found.pooling_of(generates=False) is None


def test_a_folder_that_says_nothing(tmp_path: Path) -> None:
    found = embedding_defaults(tmp_path)
    assert found == EmbeddingDefaults()
    assert found.pooling_of(generates=True) is Pooling.LAST and found.pooling_of(generates=False) is Pooling.MEAN


def test_the_longest_input(tmp_path: Path) -> None:
    (tmp_path / "sentence_bert_config.json").write_text('{"max_seq_length": 256, "do_lower_case": false}')
    assert embedding_defaults(tmp_path).max_tokens == 256


def test_lower_case_and_what_is_no_module_are_obstacles(tmp_path: Path) -> None:
    write_modules(tmp_path, "Transformer", "Pooling", pooling_mode_mean_tokens=True)
    (tmp_path / "sentence_bert_config.json").write_text('{"do_lower_case": true}')
    assert "do_lower_case" in embedding_defaults(tmp_path).obstacle
    (tmp_path / "sentence_bert_config.json").unlink()
    (tmp_path / "modules.json").write_text('["x"]')
    assert "'x', which is no module" in embedding_defaults(tmp_path).obstacle


def test_a_damaged_file_and_a_missing_one(tmp_path: Path) -> None:
    write_modules(tmp_path, "Transformer", "Pooling", pooling_mode_mean_tokens=True)
    (tmp_path / "1_Pooling" / "config.json").unlink()
    assert "without a config.json" in embedding_defaults(tmp_path).obstacle
    (tmp_path / "modules.json").write_text("{")
    with pytest.raises(FailedPrecondition, match=r"modules\.json: not readable as JSON"):
        embedding_defaults(tmp_path)
