"""The tokenizer tier as a whole: what is loaded, connected and served, and in which order it goes down."""

import asyncio
import contextlib
import logging
import time
from pathlib import Path

from prometheus_client import CollectorRegistry

from tokenizer_svc.answers import AnswerFormat
from tokenizer_svc.backends import ModelReplica
from tokenizer_svc.call_thread import CallThread
from tokenizer_svc.chat_template import load_chat_template
from tokenizer_svc.dispatcher import Dispatcher
from tokenizer_svc.encoder import Encoder
from tokenizer_svc.encoding_cache import EncodingCache
from tokenizer_svc.metrics import TokenizerMetrics
from tokenizer_svc.policies import needs_cache_events, policy_of
from tokenizer_svc.router import Pick, Router
from tokenizer_svc.service import TokenizerServicer
from tokenizer_svc.sessions import model_card
from tokenizer_svc.settings import TokenizerTierSettings
from tokenizer_svc.tier import Tier
from tokenizer_svc.tokenizer import Tokenizer
from tokenwire.embedding_wire import capability_names
from tokenwire.invariants import look
from tokenwire.logs import fields
from tokenwire.models import served_name
from tokenwire.routing.breaker import Breaker
from tokenwire.routing.discovery import Discovery, Resolve, resolve_all
from tokenwire.routing.replica_set import ReplicaSet
from tokenwire.routing.retry_budget import RetryBudget
from tokenwire.server import GrpcServer, until_signal
from tokenwire.session import MAX_FRAME_BYTES
from tokenwire.tasks import cancel_and_wait
from tokenwire.telemetry import REGISTRY, serve_metrics
from tokenwire.telemetry.tracing import Tracer, open_tracer
from tokenwire.v1 import tokenizer_pb2, tokenizer_pb2_grpc
from tokenwire.worker_place import WorkerPlace

log = logging.getLogger(__name__)

SHOW_REPLICAS_S = 1.0
"""How often the metrics are told how the model tiers are, while nothing is heard of them."""


class TokenizerTier:
    """One process of the tier. `start`, then `drain` once."""

    def __init__(
        self,
        settings: TokenizerTierSettings,
        folder: Path,
        *,
        registry: CollectorRegistry = REGISTRY,
        resolve: Resolve = resolve_all,
        share_port: bool = False,
        tracer: Tracer | None = None,
    ) -> None:
        """Load the tokenizer of a model folder. Raises FailedPrecondition naming the file that is wrong.

        `resolve`: how names of model tiers become addresses. `share_port`: this is one of several workers.
        `tracer`: None: as the settings say.
        """
        began_s = time.monotonic()
        self.settings = settings
        tokenizer = Tokenizer.load(folder)
        template = load_chat_template(
            folder,
            tokenizer.special_tokens,
            max_output_chars=settings.template_chars,
            max_render_s=settings.template_seconds,
        )
        answers = AnswerFormat.choose(
            tokenizer, template, tool_parser=settings.tool_parser, reasoning_parser=settings.reasoning_parser
        )
        model = settings.served_name or served_name(settings.model)
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
        self.metrics = TokenizerMetrics(registry)
        self.replica_set = ReplicaSet(self._make_replica, self._on_replicas)
        self.discovery = Discovery(
            settings.targets,
            self.replica_set.update,
            interval_s=settings.discovery_interval_s,
            resolve=resolve,
            tls=settings.upstream_tls,
        )
        self._fingerprint = tokenizer.fingerprint
        router = Router(
            policy=policy_of(settings.routing_policy, settings.routing_load_guard),
            max_ejected_share=settings.max_ejected_share,
            on_pick=self._on_pick,
            discovery_problem=self.discovery.problem,
        )
        self.tier = Tier(
            model=model,
            tokenizer=tokenizer,
            template=template,
            encoder=encoder,
            token_thread=CallThread("tokens", max_queued=settings.max_queued_requests),
            embedding_thread=CallThread("embed", max_queued=settings.max_queued_requests),
            router=router,
            dispatcher=Dispatcher(
                router, self.metrics, max_held_requests=settings.max_held_requests, wait_s=settings.resume_wait_s
            ),
            metrics=self.metrics,
            max_requests=settings.max_requests,
            max_open=min(settings.max_requests, settings.max_held_requests, settings.max_queued_requests),
            max_resumes=settings.max_resumes,
            retry_budget=RetryBudget(settings.retry_budget),
            answers=answers,
            tracer=open_tracer(settings, "tokenizer", self.metrics.traces) if tracer is None else tracer,
        )
        self.server = GrpcServer(settings, share_port=share_port, slack_bytes=MAX_FRAME_BYTES)
        self.servicer = TokenizerServicer(self.tier, folder, settings, lambda: self.replica_set.all)
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
                tool_calls=answers.tools_name,
                reasoning=answers.reasoning_name,
                load_ms=(time.monotonic() - began_s) * 1e3,
            ),
        )

    @property
    def replicas(self) -> tuple[ModelReplica, ...]:
        """The model tiers there are now."""
        return self.replica_set.serving

    async def start(self) -> int:
        """Listen and begin connecting to the model tiers; returns the port."""
        port = await self.server.start()
        self.discovery.start()
        self._watcher = asyncio.create_task(self._watch())
        log.info("listening", extra=fields(port=port, model_targets=self.settings.model_targets))
        return port

    async def drain(self) -> None:
        """Take nothing new, let what runs finish up to the limit, then let go of the model tiers."""
        if self._watcher is not None:
            await cancel_and_wait(self._watcher)
        self.servicer.drain_sessions(self.settings.drain_timeout_s)
        await self.server.drain()
        self.tier.dispatcher.close()
        await self.discovery.close()
        await self.replica_set.close()
        self.tier.encoder.close()
        self.tier.token_thread.close()
        self.tier.embedding_thread.close()
        if self.tier.tracer is not None:
            await asyncio.to_thread(self.tier.tracer.close)

    def _make_replica(self, address: str) -> ModelReplica:
        return ModelReplica(
            address,
            self._fingerprint,
            self._changed.set,
            breaker=Breaker(self.settings.breaker_failures, on_open=self.metrics.ejections.inc),
            follow_cache=needs_cache_events(self.settings.routing_policy),
            flow=self.tier.dispatcher,
            on_handed_out=self.metrics.handed_out,
            tls=self.settings.upstream_tls,
        )

    def _on_replicas(self) -> None:
        self.tier.router.replicas = self.replica_set.serving
        self._changed.set()

    def _on_pick(self, pick: Pick) -> None:
        self.metrics.picks_of(pick.reason.value).inc()
        if pick.num_cached_tokens:
            self.metrics.expected_cached_tokens.inc(pick.num_cached_tokens)

    async def _watch(self) -> None:
        """Healthy while at least one model tier takes requests."""
        serving, card = False, model_card(self.tier)
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SHOW_REPLICAS_S):
                    await self._changed.wait()
            self._changed.clear()
            replicas = self.replica_set.all
            self.metrics.show_replicas((each.state for each in replicas), sum(len(each.cache) for each in replicas))
            self.metrics.show_flow(sum(each.credit_requests for each in replicas), self.tier.dispatcher.oldest_held_s)
            self.tier.dispatcher.on_room()
            if self.settings.check_invariants:
                look(self.tier.check_integrity)
            if (now := model_card(self.tier)) != card:
                card = now
                self.servicer.announce_card()
                log.info(
                    "what is served changed",
                    extra=fields(
                        adapters=",".join(card.adapters) or None,
                        max_context_tokens=card.max_context_tokens,
                        capabilities=",".join(capability_names(card)),
                    ),
                )
            ready = self.tier.router.num_ready > 0
            if ready != serving:
                serving = ready
                await self.server.set_serving(serving)
                log.info("serving" if serving else "not serving: no model tier takes requests")


async def serve(settings: TokenizerTierSettings, folder: Path, place: WorkerPlace | None = None) -> None:
    """Serve until SIGTERM or SIGINT, then drain. `place`: among the workers of this tier; None: it is alone."""
    signalled = asyncio.create_task(until_signal(place))
    await asyncio.sleep(0)  # from here on a signal is answered
    tier = TokenizerTier(settings, folder, share_port=place is not None)
    serve_metrics(settings.host, settings.metrics_port, tls=settings.tls if settings.metrics_tls else None)
    await tier.start()
    if place is not None:
        place.tell_started()
    log.info("draining", extra=fields(signal=await signalled, running=tier.tier.running))
    await tier.drain()
    log.info("stopped")
