"""The engine process: `python -m model_svc.engine FD`. Started by `model_svc.engine_process`, never by hand.

Reads its settings from the socket FD, loads the model, then loops: take what came, step, send what was made. Ends when
the gRPC process is gone.
"""

import gc
import importlib
import logging
import signal
import socket
import sys
import time
from collections.abc import Callable

from model_svc.engine.adapters import AdapterOutcome, LoadAdapter
from model_svc.engine.batch import ModelRunner, RunnerInfo
from model_svc.engine.drafting import DraftLimits
from model_svc.engine.engine import ADAPTER_POLL_S, Engine
from model_svc.engine.events import Inbox, Ready, Refused
from model_svc.engine.limits import Limits
from model_svc.engine.link import EngineLink
from model_svc.settings import EngineSettings
from tokenwire import logs
from tokenwire.errors import TokenwireError

log = logging.getLogger("model_svc.engine")

RUNNERS = {"torch": "model_svc.runner", "mock": "model_svc.engine.mock_runner"}
"""Modules whose `build_runner(settings)` makes the runner; imported late so that the mock never loads torch."""
GC_THRESHOLDS = (20_000, 20, 50)
"""A look through everything takes as long as ten steps where the cache has hundreds of thousands of blocks."""


def main() -> None:
    """Serve the engine until the other end closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the gRPC process decides
    logs.configure("engine")
    link = EngineLink(socket.socket(fileno=int(sys.argv[1])))
    try:
        (settings,) = link.receive(timeout_s=None)
        engine = build(link, settings)
        if engine is not None:
            gc.collect()
            gc.freeze()  # the model and the blocks stay as long as the process does
            gc.set_threshold(*GC_THRESHOLDS)
            try:
                loop(link, engine)
            finally:
                engine.runner.close()
    except EOFError:
        log.debug("the gRPC process is gone")


def build(link: EngineLink, settings: EngineSettings) -> Engine | None:
    """Load the model and say Ready; say Refused and return None when it cannot be served."""
    try:
        runner = importlib.import_module(RUNNERS[settings.engine]).build_runner(settings)
        engine = engine_of(settings, runner)
    except TokenwireError as error:
        link.send(Refused(error))
        return None
    link.send(Ready(runner.info, load_adapters(engine, settings.adapters)))
    return engine


def load_adapters(engine: Engine, adapters: tuple[tuple[str, str], ...]) -> tuple[AdapterOutcome, ...]:
    """Have these adapters, by name and folder, read before anything runs; what became of each."""
    engine.take(Inbox(adapter_loads=[LoadAdapter(name, folder) for name, folder in adapters]))
    outcomes: list[AdapterOutcome] = []
    while engine.adapters is not None and engine.adapters.num_loading:
        time.sleep(ADAPTER_POLL_S)
        outcomes += engine.take_adapters()
    return tuple(outcomes)


def engine_of(settings: EngineSettings, runner: ModelRunner, now_s: Callable[[], float] = time.perf_counter) -> Engine:
    """The engine over this runner, as the settings say; `now_s` is what it times its steps with."""
    on_gpu, whole = runner.info.device.startswith("cuda"), settings.tensor_parallel == 1
    overlap = settings.overlap == "on" or (settings.overlap == "auto" and on_gpu and whole)
    return Engine(
        runner, limits_of(settings, runner.info), overlap=overlap, check=settings.check_invariants,
        adapters=runner.adapters, now_s=now_s,
    )  # fmt: skip


def limits_of(settings: EngineSettings, info: RunnerInfo) -> Limits:
    """The scheduler's part of the settings, those left open as the runner chose them."""
    return Limits(
        max_batch_size=info.max_batch_size,
        max_step_tokens=info.max_step_tokens,
        window_s=settings.admission_window_ms / 1000,
        window_requests=settings.admission_window_requests,
        tenant_weights=dict(settings.tenant_weights),
        drafts=drafts_of(settings, info),
    )


def drafts_of(settings: EngineSettings, info: RunnerInfo) -> DraftLimits:
    """How drafts are made. On a GPU not by default: there it has not been measured."""
    kind = settings.speculation
    if kind == "auto":
        kind = "both" if settings.draft_model else "off" if info.device.startswith("cuda") else "ngram"
    return DraftLimits(
        max_drafts=settings.speculation_length if info.takes_drafts else 0,
        by_default=kind != "off",
        by_lookup=kind in ("off", "ngram", "both"),
        by_model=kind in ("off", "draft", "both"),
        adaptive=settings.speculation_adaptive,
    )


def loop(link: EngineLink, engine: Engine) -> None:
    """Step while there is work, wait while there is none. Raises EOFError when the other end is gone."""
    while True:
        idle_s = engine.idle_s()
        inboxes = link.receive(timeout_s=idle_s)
        if idle_s != 0.0:
            engine.phases.restart()
        for inbox in inboxes:
            engine.take(inbox)
        if inboxes or engine.has_work:
            link.send(engine.step())
            engine.phases.lap("publish")


if __name__ == "__main__":
    main()
