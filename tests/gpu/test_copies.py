"""Copies to and from a GPU that is far behind the host: what was sent is what it reads, and what it made is read."""

from collections.abc import Callable

import numpy as np
import torch

from model_svc.runner.transfer import HostCopies, StagingBlock

NUM_VALUES = 16384


def test_a_block_that_is_written_again_and_again(device: str, keep_busy: Callable[[], None]) -> None:
    where = torch.device(device)
    block = StagingBlock(NUM_VALUES, where)
    read: list[HostCopies] = []
    for number in range(12):
        keep_busy()
        (sent,) = block.upload([np.full(NUM_VALUES, number)])
        read.append(HostCopies([sent * 2], where))
    assert [copies.wait()[0].unique().tolist() for copies in read] == [[2 * number] for number in range(12)]
