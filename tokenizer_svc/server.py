"""The tokenizer tier as a whole: what is loaded, connected and served, and in which order it goes down."""

import asyncio
import logging
import time
from pathlib import Path

from prometheus_client import CollectorRegistry

from tokenizer_svc.backends import ModelReplica
from tokenizer_svc.chat_template import load_chat_template
from tokenizer_svc.encoder import Encoder
from tokenizer_svc.encoding_cache import EncodingCache
from tokenizer_svc.metrics import TokenizerMetrics
from tokenizer_svc.router import Router
from tokenizer_svc.service import TokenizerServicer
from tokenizer_svc.settings import TokenizerTierSettings
from tokenizer_svc.tier import Tier
from tokenizer_svc.tokenizer import Tokenizer
from tokenwire.logs import fields
from tokenwire.models import served_name
from tokenwire.server import GrpcServer, until_signal
from tokenwire.tasks import cancel_and_wait
from tokenwire.telemetry import REGISTRY, serve_metrics
from tokenwire.v1 import tokenizer_pb2, tokenizer_pb2_grpc

log = logging.getLogger(__name__)


class TokenizerTier:
    """One process of the tier. `start`, then `drain` once."""

    def __init__(
        self, settings: TokenizerTierSettings, folder: Path, *, registry: CollectorRegistry = REGISTRY
    ) -> None:
        """Load the tokenizer of a model folder. Raises FailedPrecondition naming the file that is wrong."""
        began_s = time.monotonic()
        self.settings = settings
        tokenizer = Tokenizer.load(folder)
        template = load_chat_template(
            folder,
            tokenizer.special_tokens,
            max_output_chars=settings.template_chars,
            max_render_s=settings.template_seconds,
        )
        model = settings.served_name or served_name(settings.model)
        metrics = TokenizerMetrics(registry)
        cache = EncodingCache(settings.encoding_cache_bytes) if settings.encoding_cache_bytes else None
        encoder = Encoder(
            tokenizer,
            template,
            model,
            window_s=settings.encode_window_ms / 1000,
            max_batch_size=settings.encode_batch_size,
            num_threads=settings.encode_threads,
            max_queued=settings.max_queued_requests,
            cache=cache,
        )
        self._changed = asyncio.Event()
        self.replicas = [ModelReplica(target, tokenizer.fingerprint, self._changed.set) for target in settings.targets]
        self.tier = Tier(
            model=model,
            tokenizer=tokenizer,
            template=template,
            encoder=encoder,
            router=Router(self.replicas),
            metrics=metrics,
            max_requests=settings.max_requests,
        )
        self.server = GrpcServer(settings)
        self.servicer = TokenizerServicer(self.tier, folder)
        self.server.add(
            tokenizer_pb2_grpc.add_TokenizerServiceServicer_to_server,
            self.servicer,
            tokenizer_pb2.DESCRIPTOR.services_by_name["TokenizerService"],
        )
        self._watcher: asyncio.Task[None] | None = None
        log.info(
            "tokenizer loaded",
            extra=fields(
                model=model,
                vocab_size=tokenizer.vocab_size,
                chat_template=template is not None,
                load_ms=(time.monotonic() - began_s) * 1e3,
            ),
        )

    async def start(self) -> int:
        """Listen and begin connecting to the model tiers; returns the port."""
        port = await self.server.start()
        for replica in self.replicas:
            replica.start()
        self._watcher = asyncio.create_task(self._watch())
        log.info("listening", extra=fields(port=port, model_targets=self.settings.model_targets))
        return port

    async def drain(self) -> None:
        """Take nothing new, let what runs finish up to the limit, then let go of the model tiers."""
        if self._watcher is not None:
            await cancel_and_wait(self._watcher)
        self.servicer.drain_sessions(self.settings.drain_timeout_s)
        await self.server.drain()
        for replica in self.replicas:
            await replica.close()
        self.tier.encoder.close()

    async def _watch(self) -> None:
        """Healthy while at least one model tier takes requests."""
        serving = False
        while True:
            await self._changed.wait()
            self._changed.clear()
            ready = self.tier.router.num_ready > 0
            if ready != serving:
                serving = ready
                await self.server.set_serving(serving)
                log.info("serving" if serving else "not serving: no model tier takes requests")


async def serve(settings: TokenizerTierSettings, folder: Path) -> None:
    """Serve until SIGTERM or SIGINT, then drain."""
    signalled = asyncio.create_task(until_signal())
    await asyncio.sleep(0)  # from here on a signal is answered
    tier = TokenizerTier(settings, folder)
    serve_metrics(settings.host, settings.metrics_port)
    await tier.start()
    log.info("draining", extra=fields(signal=await signalled, running=tier.tier.running))
    await tier.drain()
    log.info("stopped")
