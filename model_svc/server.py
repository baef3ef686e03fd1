"""Puts the model tier together: engine process, gRPC services, health, metrics, drain."""

import asyncio
import dataclasses
import functools
import importlib
import logging
from pathlib import Path
from typing import Any

from google.protobuf.runtime_version import VersionError
from prometheus_client import CollectorRegistry

from model_svc.admin import ModelAdminServicer
from model_svc.engine_client import EngineClient
from model_svc.gpu_metrics import GpuMetrics
from model_svc.grammar.compiler import GrammarCompiler
from model_svc.metrics import ConstraintMetrics, EngineMetrics
from model_svc.model_card import TierState, fingerprints_of
from model_svc.service import ModelServicer
from model_svc.settings import EngineSettings, ModelTierSettings
from tokenwire import models
from tokenwire.errors import FailedPrecondition, TokenwireError
from tokenwire.invariants import watch
from tokenwire.logs import fields
from tokenwire.server import GrpcServer, run, until_signal
from tokenwire.tasks import cancel_and_wait
from tokenwire.telemetry import REGISTRY, serve_metrics
from tokenwire.telemetry.tracing import Tracer, open_tracer
from tokenwire.v1 import model_pb2, model_pb2_grpc

log = logging.getLogger(__name__)


LAST_WORDS_S = 1.0
"""How long before the drain limit open requests are ended, for their ends to be sent; a quarter of a limit below 4."""


class ModelTier:
    """The running tier. `start`, `drain`."""

    def __init__(
        self, settings: ModelTierSettings, registry: CollectorRegistry = REGISTRY, tracer: Tracer | None = None
    ) -> None:
        """`tracer`: None: as the settings say."""
        engine_settings, folder = resolve(settings)
        vocabulary, template = fingerprints_of(folder) if folder is not None else ("", "")
        self.grpc = GrpcServer(settings)
        self.metrics = EngineMetrics(registry)
        self._tracer = open_tracer(settings, "model", self.metrics.traces) if tracer is None else tracer
        self.engine = EngineClient(engine_settings, self._on_engine, self.metrics, self._tracer)
        self.grammars = GrammarCompiler(folder, ConstraintMetrics(registry))
        self.state = TierState(self.engine, vocabulary, template, self.grammars)
        self.servicer = ModelServicer(self.engine, self.state, settings)
        self.metrics.follow_leases(lambda: self.servicer.leased)
        self._gpus = GpuMetrics(registry)
        self.engine.adapters.on_change = self._on_adapters
        if settings.vllm_engine:
            vllm_engine_module().add_to(self.grpc, self.engine, self.state, folder)
        self._settings = settings
        self._registry = registry
        self._checking: asyncio.Task[None] | None = None
        self._background: set[asyncio.Task[None]] = set()

    async def start(self) -> int:
        """Listen (NOT_SERVING), load the model, then serve. Returns the port."""
        settings = self._settings
        tls = settings.tls if settings.metrics_tls else None
        serve_metrics(settings.host, settings.metrics_port, self._registry, tls)
        self.grpc.add(
            model_pb2_grpc.add_ModelServiceServicer_to_server,
            self.servicer,
            model_pb2.DESCRIPTOR.services_by_name["ModelService"],
        )
        self.grpc.add(
            model_pb2_grpc.add_ModelAdminServiceServicer_to_server,
            ModelAdminServicer(self.engine),
            model_pb2.DESCRIPTOR.services_by_name["ModelAdminService"],
        )
        port = await self.grpc.start()
        log.info("listening, the engine is starting", extra=fields(port=port))
        try:
            info = await self.engine.start()
        except TokenwireError:
            await self.grpc.server.stop(None)
            raise
        self.metrics.kv_total.set(0 if info.whole_sequences else info.num_blocks)  # else unknown until the first step
        self.grammars.load(info.vocab_size)
        self._gpus.watch(info.gpus)
        if settings.check_invariants:
            checks = watch(self.engine.check_integrity, self.servicer.check_integrity)
            self._checking = asyncio.create_task(checks)
        log.info(
            "serving",
            extra=fields(
                model=info.model, device=info.device, dtype=info.dtype, attention=info.attention,
                max_context_tokens=info.max_context_tokens, kv_blocks=0 if info.whole_sequences else info.num_blocks,
                block_size=0 if info.whole_sequences else info.block_size,
                **{f"{phase}_s": seconds for phase, seconds in info.phases_s.items()},
            ),
        )  # fmt: skip
        return port

    async def drain(self) -> None:
        """Stop taking requests, let running ones finish up to the limit, end the engine.

        Those that are still open shortly before the limit end with Unavailable, so that each has its terminal event.
        """
        log.info("draining", extra=fields(open_sequences=self.engine.num_open))
        self.state.draining = True
        if self._checking is not None:
            await cancel_and_wait(self._checking)
        self.servicer.drain_sessions()
        self.engine.drain()
        limit_s = self._settings.drain_timeout_s
        stopping = asyncio.ensure_future(self.grpc.drain())
        await asyncio.wait({stopping}, timeout=limit_s - min(LAST_WORDS_S, limit_s / 4))
        closing = asyncio.ensure_future(self.engine.close())
        self.servicer.close_sessions()
        await stopping
        await closing
        self.grammars.close()
        if self._tracer is not None:
            await asyncio.to_thread(self._tracer.close)
        log.info("stopped")

    def _on_adapters(self) -> None:
        """Adapters came or went."""
        self.metrics.keep_adapters(self.engine.adapters.names)
        self.servicer.announce_card()

    def _on_engine(self, up: bool) -> None:
        """The engine came up or was lost: health follows; sessions end with their engine."""
        if not up:
            self.servicer.end_sessions()
        task = asyncio.ensure_future(self.grpc.set_serving(up))
        self._background.add(task)
        task.add_done_callback(self._background.discard)


def vllm_engine_module() -> Any:
    """The service that another gateway knows; loads the package that has its messages.

    Raises FailedPrecondition where there is none, and where it was made for newer releases of grpcio or protobuf.
    """
    try:
        return importlib.import_module("model_svc.vllm_engine.service")
    except (
        ImportError,
        RuntimeError,
        VersionError,
    ) as error:
        message = f"--vllm-engine: the package smg-grpc-proto cannot be loaded ({error})"
        raise FailedPrecondition(f"{message}: pip install 'tokenwire[smg]'", reason="PACKAGE_MISSING") from error


def resolve(settings: ModelTierSettings) -> tuple[EngineSettings, Path | None]:
    """The engine's settings with the models as folders and the served name filled in; the mock needs no folder.

    Downloads or converts the model when it is absent. Raises NotFound and what else `tokenwire.models` raises.
    """
    folder = models.resolve(settings.model) if settings.engine == "torch" else None
    values = {field.name: getattr(settings, field.name) for field in dataclasses.fields(EngineSettings)}
    values["served_name"] = settings.served_name or models.served_name(settings.model)
    values["model"] = str(folder or settings.model)
    if folder is not None and settings.draft_model:
        values["draft_model"] = str(models.resolve(settings.draft_model))
    return EngineSettings(**values), folder


async def serve(settings: ModelTierSettings) -> None:
    """Run until SIGTERM or SIGINT, then drain."""
    tier = ModelTier(settings)
    signalled = asyncio.ensure_future(until_signal())
    starting = asyncio.ensure_future(tier.start())
    await asyncio.wait({signalled, starting}, return_when=asyncio.FIRST_COMPLETED)
    if starting.done():
        starting.result()
        log.info("signal", extra=fields(name=await signalled))
        await tier.drain()
    else:
        starting.cancel()
        await asyncio.wait({starting})
        await tier.engine.close()
        await tier.grpc.server.stop(None)


def main(settings: ModelTierSettings) -> None:
    """Serve in this process until it is told to end."""
    run(functools.partial(serve, settings))
