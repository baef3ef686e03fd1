from pathlib import Path

import pytest

from benchmarks.embeddings import notes, speed_table
from benchmarks.embeddings_program import inputs_of, measured
from tests.fakes.tiny_encoders import write_encoder


def test_every_contender_embeds_the_same_inputs(tmp_path: Path) -> None:
    folder = write_encoder(tmp_path / "tiny", "bert")
    record = measured({"model": str(folder), "inputs": 12, "rounds": 2, "threads": 1})
    assert list(record["contenders"]) == [
        "transformers float32, padded", "transformers bfloat16, padded", "ours float32", "ours bfloat16",
    ]  # fmt: skip
    cosines = {name: each["least_cosine"] for name, each in record["contenders"].items()}
    assert cosines["ours float32"] == pytest.approx(1.0, abs=1e-5)
    assert all(cosine > 0.99 for cosine in cosines.values())
    assert all(each["inputs_per_s"] > 0 and len(each["seconds"]) == 2 for each in record["contenders"].values())
    assert "ours float32" in speed_table(record)
    where = {"cpu": "a CPU", "cores": 2, "versions": {"torch": "1", "transformers": "2"}}
    assert "12 inputs" in notes({**record, "machine": where, "date": "today", "rounds": 2})


def test_lengths_are_bounded_and_inputs_repeat() -> None:
    inputs = inputs_of(200, 1000, 64)
    assert inputs == inputs_of(200, 1000, 64)
    assert all(3 <= len(ids) <= 64 and all(0 <= token < 1000 for token in ids) for ids in inputs)
