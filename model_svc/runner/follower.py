"""A rank that follows: `python -m model_svc.runner.follower FD`. Started by `followers.py`, never by hand.

Loads its part of the model, then runs each step that the leader tells. What it samples is not used: every rank has all
logits, and the leader's tokens come with the next step. Ends when the leader is gone.
"""

import logging
import signal
import socket
import sys
import time

import torch

from model_svc.engine.batch import run_step
from model_svc.engine.link import EngineLink
from model_svc.model.ranks import join
from model_svc.runner.batch_mirror import BatchDecoder
from model_svc.runner.followers import FollowerStart, end_with_leader
from model_svc.runner.startup import start_runner
from tokenwire import logs
from tokenwire.errors import TokenwireError

log = logging.getLogger("model_svc.runner.follower")

REFUSAL_GRACE_S = 10.0
"""How long a follower that cannot serve lets the leader find that out and say so itself."""


def main() -> None:
    """Follow until the leader is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    connection = socket.socket(fileno=int(sys.argv[1]))
    logs.configure("rank")
    end_with_leader(connection)
    link = EngineLink(connection)
    try:
        (start,) = link.receive(timeout_s=None)
        follow(link, start)
    except EOFError:
        log.debug("the leading rank is gone")


def follow(link: EngineLink, start: FollowerStart) -> None:
    """Load, then run what comes."""
    logs.configure(f"rank-{start.rank}")
    ranks = join(start.rank, start.size, torch.device(start.device), start.port)
    try:
        runner = start_runner(start.settings, {}, ranks)
    except TokenwireError as error:
        time.sleep(REFUSAL_GRACE_S)
        log.error("rank %d cannot serve, though the leading rank can: %s", start.rank, error)
        raise SystemExit(1) from None
    decoder = BatchDecoder()
    while True:
        for message in link.receive(timeout_s=None):
            run_step(runner, decoder.decode(message))


if __name__ == "__main__":
    main()
