"""The gateway as a whole: what listens, what is connected, and in which order it goes down."""

import asyncio
import contextlib
import logging
import time

from prometheus_client import CollectorRegistry

from gateway.backend import RETRY_AFTER_S
from gateway.backends import Backends
from gateway.generation import Generation
from gateway.http.app import make_app
from gateway.http.cors import with_cors
from gateway.http.guard import HttpLimits
from gateway.http.hosts import LoopbackHosts
from gateway.http.server import HttpServer
from gateway.identity.grpc_gate import GrpcGate
from gateway.kserve.service import InferenceService
from gateway.metrics import GatewayMetrics
from gateway.page.feed import LiveFeed
from gateway.page.recent import Recent
from gateway.service import GenerationService
from gateway.settings import GatewaySettings
from gateway.web.calls import WebCalls
from gateway.web.methods import WebMethods
from tokenwire.errors import Unavailable
from tokenwire.invariants import look
from tokenwire.kserve import inference_pb2, inference_pb2_grpc
from tokenwire.logs import fields
from tokenwire.open_files import connections_within
from tokenwire.routing.discovery import Resolve, resolve_all
from tokenwire.server import GrpcServer, until_signal
from tokenwire.tasks import cancel_and_wait
from tokenwire.telemetry import REGISTRY, merged_registry, serve_metrics
from tokenwire.telemetry.tracing import Tracer, open_tracer
from tokenwire.v1 import gateway_pb2, gateway_pb2_grpc
from tokenwire.worker_place import WorkerPlace

log = logging.getLogger(__name__)

SHOW_TIERS_S = 1.0
"""How often the metrics are told how the tiers are, while nothing is heard of them."""
FIRST_CONTACT_S = 3.0
"""A gateway that has just started lets nobody in for this long at most, until it has found a tier that can answer."""
LINGER_S = 1.0
"""How long open HTTP connections may bring another request, whose answer says that they close."""
LOOK_AGAIN_S = 0.05
"""How often a drain looks whether anybody is left."""
LAST_MOMENTS_S = 0.5
"""This long before the drain's limit what still runs is ended by name, so that its caller hears why."""


class Gateway:
    """One process of the tier. `start`, then `drain` once."""

    def __init__(
        self,
        settings: GatewaySettings,
        place: WorkerPlace | None = None,
        *,
        registry: CollectorRegistry = REGISTRY,
        resolve: Resolve = resolve_all,
        tracer: Tracer | None = None,
    ) -> None:
        """`place`: among the workers of this tier; None: it is alone.

        `resolve`: how names of tokenizer tiers become addresses. `tracer`: None: as the settings say.
        """
        self.settings = settings
        metrics = GatewayMetrics(registry)
        keyring = settings.keyring()
        self._limiter = settings.limiter(keyring, place, settings.workers, metrics.limited)
        self.backends = Backends(settings, metrics, self._limiter, resolve=resolve)
        self._tracer = open_tracer(settings, "gateway", metrics.traces) if tracer is None else tracer
        self.generation = Generation(settings, self.backends, metrics, self._tracer)
        self.service = GenerationService(self.generation)
        self.inference = InferenceService(self.generation)
        identifier = settings.identifier(keyring, metrics)
        gates = [] if identifier is None else [GrpcGate(identifier, open_health=settings.open_health)]
        self.grpc = GrpcServer(settings, share_port=place is not None, interceptors=gates)
        web_methods = WebMethods(self.grpc.interceptors)
        for server in (self.grpc, web_methods):
            server.add(
                gateway_pb2_grpc.add_GenerationServiceServicer_to_server,
                self.service,
                gateway_pb2.DESCRIPTOR.services_by_name["GenerationService"],
            )
        self.grpc.add(
            inference_pb2_grpc.add_GRPCInferenceServiceServicer_to_server,
            self.inference,
            inference_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"],
        )
        self._feed: LiveFeed | None = None
        if settings.page:
            recent = Recent()
            self.backends.on_ended = recent.add
            with_addresses = identifier is None or not settings.open_metrics
            self._feed = LiveFeed(self.backends, recent, with_addresses=with_addresses)
        app = make_app(
            self.generation,
            registry if place is None else merged_registry(place.metrics_folder),
            identifier,
            has_limits=self._limiter is not None,
            feed=self._feed,
        )
        self._web = WebCalls(app, web_methods, settings)
        self.http = HttpServer(
            with_cors(self._web, settings.cors_origins.split(",") if settings.cors_origins else ()),
            settings.host,
            settings.http_port,
            limits=HttpLimits(
                max_connections=connections_within(settings.max_connections),
                max_header_bytes=settings.max_header_bytes,
                max_headers=settings.max_headers,
                header_timeout_s=settings.header_timeout_s,
                idle_timeout_s=settings.idle_timeout_s,
                max_age_s=settings.max_connection_age_s,
                max_unfinished_bytes=settings.max_unfinished_bytes,
            ),
            on_refused=metrics.http_refused,
            refuse_host=LoopbackHosts(settings, identifier).refuse,
            tls=settings.tls,
            share_port=place is not None,
        )
        self._watcher: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin connecting to the tokenizer tiers, and listen on both ports. Raises FailedPrecondition."""
        self.http.bind()
        try:
            self.grpc.refuse_port_in_use()
            self.backends.start()
            await self._until_first_contact()
            await self.grpc.start()
        except BaseException:
            await self.http.stop()
            raise
        await self.http.start()
        log.info(
            "listening",
            extra=fields(
                grpc_port=self.grpc.port, http_port=self.http.port, tokenizer_targets=self.settings.tokenizer_targets
            ),
        )
        self._watcher = asyncio.get_running_loop().create_task(self._watch())

    async def drain(self) -> None:
        """Let in nobody new, answer who is there up to the limit, then let go of everything.

        What comes on connections that are open is still served, so that who has not heard yet loses nothing.
        """
        limit_s = self.settings.drain_timeout_s
        ends_s = time.monotonic() + limit_s
        self.generation.draining = True
        if self._watcher is not None:
            await cancel_and_wait(self._watcher)
        await self.http.drain()
        self.service.drain(limit_s)
        self.inference.drain()
        grpc_drained = asyncio.get_running_loop().create_task(self.grpc.drain())
        await self._until_idle(max(0.0, limit_s - LAST_MOMENTS_S))
        self.backends.end_all(
            Unavailable("the gateway is shutting down", reason="SHUTTING_DOWN", retry_after_s=RETRY_AFTER_S)
        )
        await asyncio.gather(grpc_drained, self.http.stop(max(LAST_MOMENTS_S, ends_s - time.monotonic())))
        self._web.close()
        if self._feed is not None:
            await self._feed.close()
        await self.backends.close()
        if self._limiter is not None:
            self._limiter.close()
        if self._tracer is not None:
            await asyncio.to_thread(self._tracer.close)

    async def _until_first_contact(self) -> None:
        """Others answer meanwhile, where there are others; where no tier is there, callers are told so."""
        changed = self.backends.changed
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FIRST_CONTACT_S):
                while not self.backends.ready:
                    changed.clear()
                    await changed.wait()
        changed.set()

    async def _until_idle(self, limit_s: float) -> None:
        """Wait until nothing is being answered, at most this long. HTTP connections may bring something for a while."""
        began_s = time.monotonic()
        while (passed_s := time.monotonic() - began_s) < limit_s:
            if passed_s >= LINGER_S:
                self.http.close_idle()
            if not (self.backends.num_open or self.http.num_connections):
                return
            self.backends.idle.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(limit_s - passed_s, LOOK_AGAIN_S)):
                    await self.backends.idle.wait()

    async def _watch(self) -> None:
        """Healthy while a tokenizer tier with a model behind it can be reached."""
        serving = False
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SHOW_TIERS_S):
                    await self.backends.changed.wait()
            self.backends.changed.clear()
            self.backends.show_tiers()
            if self.settings.check_invariants:
                look(self.backends.room.check_integrity)
            if self.backends.ready != serving:
                serving = not serving
                await self.grpc.set_serving(serving)
                log.info("serving" if serving else f"not serving: {self.backends.missing()}")


async def serve(settings: GatewaySettings, place: WorkerPlace | None = None) -> None:
    """Serve until SIGTERM or SIGINT, then drain. `place`: among the workers of this tier; None: it is alone."""
    signalled = asyncio.create_task(until_signal(place))
    await asyncio.sleep(0)  # from here on a signal is answered
    gateway = Gateway(settings, place)
    serve_metrics(settings.host, settings.metrics_port, tls=settings.tls if settings.metrics_tls else None)
    await gateway.start()
    if place is not None:
        place.tell_started()
    log.info("draining", extra=fields(signal=await signalled, running=gateway.backends.num_open))
    await gateway.drain()
    log.info("stopped")
