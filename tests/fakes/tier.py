"""A process that stands for a tier: `python -m tests.fakes.tier --port N [--says TEXT] [--dies CODE] [--stubborn]`.

Serves grpc.health.v1 as SERVING until SIGTERM; says why it ends. With --dies it ends at once with that status; with
--stubborn it ignores SIGTERM. Starts a child that would live on if nobody ended the group.
"""

import argparse
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--says", default="")
    parser.add_argument("--dies", type=int)
    parser.add_argument("--stubborn", action="store_true")
    given = parser.parse_args()
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: None if given.stubborn else ended.set())
    child = subprocess.Popen(["sleep", "600"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    print(f"child {child.pid}")
    print(given.says, file=sys.stderr)
    if given.dies is not None:
        raise SystemExit(given.dies)
    server = grpc.server(ThreadPoolExecutor(2))
    state = health.HealthServicer()
    state.set("", health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(state, server)
    assert server.add_insecure_port(f"127.0.0.1:{given.port}")
    server.start()
    ended.wait()
    print("drained")
    server.stop(None).wait()


if __name__ == "__main__":
    main()
