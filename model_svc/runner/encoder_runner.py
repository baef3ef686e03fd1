"""The ModelRunner of encoders: whole sequences packed into one forward pass, vectors out. No cache, no tokens.

Knows the model and rows of a batch. Does not know why a batch looks as it does, nor the wire.
"""

from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch

from model_svc.engine.adapters import AdapterStore
from model_svc.engine.batch import DraftModel, RunnerInfo, ScheduledBatch, StepOutput
from model_svc.engine.phase_clock import PhaseClock
from model_svc.grammar.bench import GrammarBench
from model_svc.model.encoder import Encoder, packed_row
from model_svc.model.encoder_attention import EncoderBackend
from model_svc.model.upload import to_device
from model_svc.runner.memory import raising_out_of_memory
from model_svc.runner.pooling import LaunchedVectors, Pooler
from tokenwire.errors import Internal


@dataclass(frozen=True, slots=True)
class LaunchedEncoding:
    """A step whose vectors are on their way to the host."""

    num_rows: int
    vectors: LaunchedVectors


class EncoderRunner:
    """Runs one encoder on one device. Not safe for several threads."""

    adapters: AdapterStore | None = None
    draft_model: DraftModel | None = None
    grammars: GrammarBench | None = None

    def __init__(self, model: Encoder, backend: EncoderBackend, info: RunnerInfo) -> None:
        self.info = info
        self.phases = PhaseClock()
        self._model = model
        self._backend = backend
        self._pooler = Pooler(info.max_batch_size, model.device)

    @torch.inference_mode()
    def launch(self, batch: ScheduledBatch) -> LaunchedEncoding:
        """See `ModelRunner.launch`. On a GPU nothing here waits for it.

        Raises Internal for a row that is not all of a sequence that is embedded.
        """
        with raising_out_of_memory(self._model.device):
            return self._launch(batch)

    def _launch(self, batch: ScheduledBatch) -> LaunchedEncoding:
        for row in batch.rows:
            if row.start or row.end != row.sequence.num_tokens or row.sequence.embedding is None:
                raise Internal("an encoder computes whole sequences, and generates nothing")
        lengths = np.array([row.num_new_tokens for row in batch.rows], dtype=np.int64)
        order = lengths.argsort(kind="stable")  # equal lengths attend together
        ids = chain.from_iterable(batch.rows[index].sequence.token_ids for index in order)
        token_ids = to_device(np.fromiter(ids, dtype=np.int64, count=int(lengths.sum())), self._model.device)
        positions, packed = packed_row(lengths[order].tolist(), self._model.device)
        plan = self._pooler.plan(batch, order)
        self.phases.lap("prepare")
        hidden = self._model.hidden(token_ids, positions, packed, self._backend)
        assert plan is not None, "every row is embedded"
        vectors = self._pooler.pool(hidden, batch, plan)
        self.phases.lap("forward")
        return LaunchedEncoding(len(batch.rows), vectors)

    def collect(self, launched: LaunchedEncoding) -> StepOutput:
        """See `ModelRunner.collect`. A row whose numbers are none has an entry in `errors`."""
        vectors, errors = launched.vectors.take()
        self.phases.lap("wait")
        return StepOutput(token_ids=(None,) * launched.num_rows, errors=errors, vectors=vectors)

    def close(self) -> None:
        """Drop the model; the runner is of no use afterwards."""
        on_gpu = self._model.device.type == "cuda"
        del self._model
        if on_gpu:
            torch.cuda.empty_cache()
