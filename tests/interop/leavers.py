"""Waits until nothing is left of clients that have gone."""

import time

import grpc

from tests.e2e.conftest import Stack
from tokenwire.v1 import model_pb2, model_pb2_grpc

LIMIT_S = 10


def until_idle(stack: Stack) -> None:
    """Until the model tier runs nothing and nothing waits there."""
    with grpc.insecure_channel(stack.model_target) as channel:
        stub = model_pb2_grpc.ModelServiceStub(channel)
        ends_s = time.monotonic() + LIMIT_S
        while (load := stub.GetLoad(model_pb2.GetLoadRequest()).load).running + load.queued:
            assert time.monotonic() < ends_s, load
            time.sleep(0.05)
