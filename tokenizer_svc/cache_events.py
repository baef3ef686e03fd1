"""Follows a model tier's cache events over the wire into its `CacheView`, as long as the connection is wanted.

Asks again from where it was after every break, and after a gap. Does not know what the events are for.
"""

import asyncio
import logging
import random
from collections.abc import Callable
from typing import Any

import grpc

from tokenizer_svc.cache_view import CacheView
from tokenwire.cache_events import CacheChange, CacheEvent
from tokenwire.errors import FailedPrecondition, Unsupported
from tokenwire.logs import fields
from tokenwire.status import from_rpc_error
from tokenwire.tasks import cancel_and_wait
from tokenwire.v1 import model_pb2

log = logging.getLogger(__name__)

FIRST_BACKOFF_S = 0.2
MAX_BACKOFF_S = 5.0

OpenCall = Callable[[model_pb2.SubscribeCacheEventsRequest], Any]


class CacheFollower:
    """One replica's events. `follow` whenever it has said Hello; close it."""

    def __init__(self, target: str, view: CacheView) -> None:
        self._target = target
        self._view = view
        self._task: asyncio.Task[None] | None = None

    def follow(self, open_call: OpenCall) -> None:
        """Begin, or ask again from where it is: the connection may be a new one, to another process even."""
        if self._task is not None:
            self._task.cancel()
        self._task = asyncio.get_running_loop().create_task(self._keep_following(open_call))

    async def close(self) -> None:
        """Follow no longer."""
        if self._task is not None:
            await cancel_and_wait(self._task)

    async def _keep_following(self, open_call: OpenCall) -> None:
        backoff_s = FIRST_BACKOFF_S
        while True:
            epoch, number = self._view.position
            call = open_call(model_pb2.SubscribeCacheEventsRequest(epoch=epoch, sequence_number=number))
            try:
                if await self._read(call):
                    backoff_s = FIRST_BACKOFF_S
            except grpc.RpcError as rpc_error:
                error = from_rpc_error(rpc_error)
                if isinstance(error, FailedPrecondition | Unsupported):
                    extra = fields(target=self._target, error=error.message)
                    log.info("its cache events are not to be had", extra=extra)
                    return  # until it says Hello again
                log.debug("cache events of %s: %s", self._target, error)
            finally:
                call.cancel()
            await asyncio.sleep(backoff_s * random.uniform(0.5, 1.0))
            backoff_s = min(backoff_s * 2, MAX_BACKOFF_S)

    async def _read(self, call: Any) -> bool:
        """Take in events until the stream ends or one is missing; returns whether any came."""
        came = False
        while (message := await call.read()) is not grpc.aio.EOF:
            if not self._view.apply(event_from_wire(message)):
                log.info("cache events are missing", extra=fields(target=self._target, number=message.sequence_number))
                return came
            came = True
        return came


def event_from_wire(message: model_pb2.SubscribeCacheEventsResponse) -> CacheEvent:
    """The event as plain values. A kind that this release does not know changes nothing but the number."""
    kind = message.WhichOneof("event")
    hashes = tuple(getattr(message, kind).hashes) if kind else ()
    change = CacheChange(kind) if kind else CacheChange.STORED
    return CacheEvent(message.epoch, message.sequence_number, change, hashes, message.continues)
