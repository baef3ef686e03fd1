"""What every tier's gRPC server has: health, reflection, channelz, typed errors, bounded messages, drain on SIGTERM.

A tier's `__main__` calls `run(main)`; its `main` builds a `GrpcServer`, adds services and awaits `serve_until_signal`.
"""

import asyncio
import gc
import logging
import signal
import sys
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

import grpc
import uvloop
from grpc_channelz.v1 import channelz
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from tokenwire.addresses import is_free, is_loopback, join_host_port
from tokenwire.channels import server_options
from tokenwire.errors import FailedPrecondition, TokenwireError
from tokenwire.grpc_tls import server_credentials
from tokenwire.interceptor import TypedErrors
from tokenwire.open_files import raise_limit
from tokenwire.settings import ServerSettings
from tokenwire.worker_place import WorkerPlace

T = TypeVar("T")

log = logging.getLogger(__name__)

WATCHERS_S = 0.2
"""How long those who watch have to hear that the server does not serve any more."""
GC_THRESHOLDS = (20_000, 20, 50)
"""Python's own, 700, looks for garbage several times per request, and almost all that a request made goes without."""
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
LIVENESS = "liveness"
"""Name under which health says SERVING for as long as the process answers, whether or not the tier can: who restarts
what hangs must not restart a tier that waits for another one."""


class GrpcServer:
    """One tier's server. Health starts as NOT_SERVING; the tier says when it can answer."""

    def __init__(
        self,
        settings: ServerSettings,
        *,
        share_port: bool = False,
        interceptors: Sequence[grpc.aio.ServerInterceptor] = (),
        slack_bytes: int = 0,
    ) -> None:
        """`share_port`: this is one of several workers, for whom the port is held.

        `slack_bytes`: how much larger than the settings say a message may be. `interceptors`: of every call, behind the
        one that answers typed errors.
        """
        refuse_public_without_auth(settings)
        tls = settings.tls
        self._credentials = server_credentials(tls) if tls is not None else None
        self.settings = settings
        self.port = 0
        self.services: list[str] = []
        self._share_port = share_port
        options = server_options(
            settings.max_message_bytes + slack_bytes,
            share_port=share_port,
            max_age_s=settings.max_connection_age_s,
            age_grace_s=settings.max_connection_age_grace_s,
        )
        typed_errors = TypedErrors()
        self._running = typed_errors.running
        self.interceptors = [typed_errors, *interceptors]
        """Of every call, the outermost first."""
        self.server = grpc.aio.server(interceptors=self.interceptors, options=options)
        self.health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self.health, self.server)
        channelz.add_channelz_servicer(self.server)

    def add(self, add_to_server: Callable[[Any, grpc.aio.Server], None], servicer: Any, descriptor: Any) -> None:
        """Offer a service: the generated `add_…_to_server`, the servicer, and its service descriptor."""
        add_to_server(servicer, self.server)
        self.services.append(descriptor.full_name)

    def refuse_port_in_use(self) -> None:
        """Raise FailedPrecondition where `start` would: for who has something to wait for before."""
        if not self._share_port and not is_free(self.settings.port, self.settings.host):
            raise self._port_in_use()

    async def start(self) -> int:
        """Listen; returns the port. Raises FailedPrecondition when the address cannot be used."""
        names = [*self.services, health.SERVICE_NAME, reflection.SERVICE_NAME]
        reflection.enable_server_reflection(names, self.server)
        self.refuse_port_in_use()  # gRPC would print lines of its own
        address = join_host_port(self.settings.host, self.settings.port)
        try:
            if self._credentials is None:
                self.port = self.server.add_insecure_port(address)
            else:
                self.port = self.server.add_secure_port(address, self._credentials)
        except RuntimeError as error:
            raise self._port_in_use() from error
        await self.set_serving(False)
        await self.health.set(LIVENESS, SERVING)
        await self.server.start()
        return self.port

    def _port_in_use(self) -> FailedPrecondition:
        address = join_host_port(self.settings.host, self.settings.port)
        message = f"cannot listen on {address}: the port is in use or the address is not of this machine"
        return FailedPrecondition(f"{message}; give another with --port or --host", reason="PORT_IN_USE")

    async def set_serving(self, serving: bool) -> None:
        """Tell health checks whether this tier can answer. A full queue is not ill health."""
        for name in ("", *self.services):
            await self.health.set(name, SERVING if serving else NOT_SERVING)

    async def drain(self) -> None:
        """NOT_SERVING, no new calls, running ones may finish up to the limit, then everything ends.

        Calls that only watch are not waited for.
        """
        await self.health.enter_graceful_shutdown()
        stopping = asyncio.create_task(self.server.stop(self.settings.drain_timeout_s))
        idle = asyncio.create_task(self._running.wait_none())
        await asyncio.wait({stopping, idle}, return_when=asyncio.FIRST_COMPLETED)
        idle.cancel()
        await self.server.stop(min(WATCHERS_S, self.settings.drain_timeout_s))
        await stopping


async def until_signal(place: WorkerPlace | None = None) -> str:
    """Wait for SIGTERM or SIGINT; returns its name. A second one ends the process at once.

    A worker leaves SIGINT to its parent, which a terminal sends it too, and goes when the parent is gone.
    """
    gc.freeze()  # what start-up made stays as long as the process does, and need not be looked through again
    gc.set_threshold(*GC_THRESHOLDS)
    loop = asyncio.get_running_loop()
    received: asyncio.Future[str] = loop.create_future()

    def on_signal(number: signal.Signals) -> None:
        if received.done():
            log.warning("second signal: leaving at once")
            sys.stderr.flush()
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        else:
            received.set_result(number.name)

    if place is not None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        place.follow_parent()
    for number in (signal.SIGTERM, signal.SIGINT) if place is None else (signal.SIGTERM,):
        loop.add_signal_handler(number, on_signal, number)
    return await received


def run(main: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a tier on uvloop, with as many open files as the system grants; returns what `main` returns.

    A typed error at start is one clear line and exit status 1, not a traceback.
    """
    raise_limit()
    try:
        return uvloop.run(main())
    except TokenwireError as error:
        log.error("%s", error)
        raise SystemExit(1) from None


def refuse_public_without_auth(settings: ServerSettings) -> None:
    """Raise FailedPrecondition when others could reach this address, nobody is asked, and nobody said that it is meant.

    An address that is meant to be open is told in the log where keys would cross the network in the clear.
    """
    host = settings.host
    if is_loopback(host):
        return
    if settings.asks_who:
        if settings.tls is None:
            log.warning("--host %s without TLS: what callers show crosses the network as it is", host)
        return
    if not settings.insecure:
        message = f"--host {host} can be reached by others, and this tier asks nobody who they are"
        raise FailedPrecondition(
            f"{message}: {settings.ways_to_ask}, or add --insecure if the network around it is trusted",
            reason="INSECURE_HOST",
        )
