"""A recorder of computations for a machine without a GPU, and runners whose decode steps it records."""

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from model_svc.engine.batch import ModelRunner
from model_svc.runner.decode_graphs import DecodeGraphs
from model_svc.runner.graph import Graph, Record
from model_svc.runner.graph_start import record_graphs
from model_svc.runner.model_runner import TorchModelRunner


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


def recorded(
    runner: ModelRunner,
    record: Record,
    *,
    lazily: bool = False,
    max_batch_size: int = 16,
    num_adapter_slots: int = 0,
) -> TorchModelRunner:
    """The runner, replaying batches up to that size; its last block, now the scratch block, is not the scheduler's."""
    assert isinstance(runner, TorchModelRunner)
    graphs = DecodeGraphs(
        runner._model, runner._kv, runner._backend, record, max_batch_size=max_batch_size,
        max_blocks=runner._input_batch.max_blocks, scratch_block=runner.info.num_blocks - 1,
        num_adapter_slots=num_adapter_slots,
    )  # fmt: skip
    runner._graphs = record_graphs(graphs, lazily=lazily)
    runner.info = replace(runner.info, num_blocks=runner.info.num_blocks - 1)
    return runner
