"""The torch runner. `build_runner` is all the engine needs of it; importing this package imports torch."""

import time
from pathlib import Path

from model_svc.engine.batch import ModelRunner
from model_svc.model import IMPORT_STARTED_S
from model_svc.model.encoder import is_encoder
from model_svc.runner.encoder_startup import start_encoder
from model_svc.runner.leader import start_leader
from model_svc.runner.startup import start_runner
from model_svc.settings import EngineSettings

IMPORT_S = time.perf_counter() - IMPORT_STARTED_S


def build_runner(settings: EngineSettings) -> ModelRunner:
    """A warm runner for `settings.model`, which is a folder with config.json and *.safetensors.

    Takes seconds. Starts a process for each further rank of `tensor_parallel`. Sets torch's number of threads. Raises
    NotFound for a folder that is not there and FailedPrecondition for a model, device or memory that cannot serve.
    """
    phases_s = {"import": IMPORT_S}
    if is_encoder(Path(settings.model)):
        return start_encoder(settings, phases_s)
    return start_leader(settings, phases_s) if settings.tensor_parallel > 1 else start_runner(settings, phases_s)


__all__ = ["build_runner"]
