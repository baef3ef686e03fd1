"""The rank that leads: starts the others, then runs each step with them. To the engine it is one runner.

Each step's batch goes to the followers as `batch_mirror` puts it; then all ranks compute it jointly.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import torch

from model_svc.engine.adapters import AdapterStore
from model_svc.engine.batch import ModelRunner, ScheduledBatch, StepOutput
from model_svc.model.device import gpu_uuids, resolve_device
from model_svc.model.loader import check_ranks
from model_svc.model.ranks import Meeting, join, leave
from model_svc.model.sharding import refused
from model_svc.runner.batch_mirror import BatchEncoder
from model_svc.runner.followers import Followers
from model_svc.runner.startup import check_settings, start_runner, timed
from model_svc.settings import EngineSettings

log = logging.getLogger(__name__)


class LeadingRunner:
    """The ranks as one ModelRunner. A step that fails, for want of memory too, ends the process.

    Ranks may be out of step with each other.
    """

    def __init__(
        self, runner: ModelRunner, followers: Followers, meeting: Meeting, devices: Sequence[torch.device]
    ) -> None:
        self.followers = followers
        num_ranks = len(followers.pids) + 1
        device = f"{runner.info.device} ({num_ranks} ranks)"
        self.info = replace(runner.info, device=device, gpus=gpu_uuids(*devices))
        self.phases = runner.phases
        self.adapters: AdapterStore | None = None
        self.grammars = runner.grammars
        self.draft_model = runner.draft_model
        self._runner = runner
        self._meeting = meeting
        self._encoder = BatchEncoder()

    def launch(self, batch: ScheduledBatch) -> Any:
        """See `ModelRunner.launch`. Raises SystemExit, which no engine takes for a step that failed alone."""
        try:
            self.followers.send(self._encoder.encode(batch))
            return self._runner.launch(batch)
        except Exception:
            self._end()

    def collect(self, launched: Any) -> StepOutput:
        """See `ModelRunner.collect`. Raises SystemExit likewise."""
        try:
            return self._runner.collect(launched)
        except Exception:
            self._end()

    def _end(self) -> NoReturn:
        self.followers.give_way()
        log.exception("a step failed; its ranks may be out of step with each other, so the engine process ends")
        raise SystemExit(1) from None

    def close(self) -> None:
        """End the followers, then give the device back."""
        self.followers.close()
        self._runner.close()
        leave()


def start_leader(settings: EngineSettings, phases_s: dict[str, float]) -> LeadingRunner:
    """Start `settings.tensor_parallel` ranks, this process the first. Raises what `start_runner` raises."""
    check_settings(settings)
    devices = rank_devices(settings.device, settings.tensor_parallel)
    check_ranks(Path(settings.model), len(devices))
    meeting = Meeting(len(devices))
    followers = Followers(settings, [str(device) for device in devices], meeting.port)
    try:
        with timed(phases_s, "ranks"):
            ranks = join(0, len(devices), devices[0], meeting.port)
        return LeadingRunner(start_runner(settings, phases_s, ranks), followers, meeting, devices)
    except BaseException:
        followers.close()
        leave()
        raise


def rank_devices(name: str, size: int) -> list[torch.device]:
    """Each rank's device: cuda:0 and up, or the CPU for all. Raises FailedPrecondition where there are too few."""
    device = resolve_device(name)
    if device.type == "cpu":
        return [device] * size
    if ":" in name:
        raise refused(f"{size} ranks take cuda:0 to cuda:{size - 1}, so --device {name} cannot be met; give cuda")
    if (found := torch.cuda.device_count()) < size:
        raise refused(f"{size} ranks take a GPU each, and this machine has {found}")
    return [torch.device("cuda", index) for index in range(size)]
