"""A runner of a tiny model: fp32, one thread, small blocks, room for many sequences."""

from typing import Any

from model_svc.engine.batch import ModelRunner
from model_svc.runner import build_runner
from model_svc.settings import EngineSettings


def tiny_runner_of(folder: str, **settings: Any) -> ModelRunner:
    """A warm runner of the model in `folder`; `settings` are EngineSettings' to change."""
    chosen: dict[str, Any] = {
        "threads": 1, "block_size": 4, "max_batch_size": 32, "kv_memory": 16 * 2**20, "device": "cpu",
        "dtype": "float32",
    }  # fmt: skip
    return build_runner(EngineSettings(model=folder, **(chosen | settings)))
