"""A recorder of computations for a machine without a GPU."""

from collections.abc import Callable

from torch import Tensor

from model_svc.runner.graph import Graph


class Recorder:
    """Stands in for CUDA: keeps the function and, on replay, fills the same output by running it once more."""

    def __init__(self) -> None:
        self.num_recorded = 0

    def __call__(self, compute: Callable[[], Tensor]) -> Graph:
        self.num_recorded += 1
        output = compute().clone()

        def replay() -> None:
            output.copy_(compute())

        return Graph(replay, output)
