"""The torch ModelRunner: the only caller of the device. Batch in, sampled tokens out.

Knows the model, its cache and its buffers. Does not know why a batch looks as it does (the scheduler's business),
nor the wire.
"""

import torch

from model_svc.engine.batch import RunnerInfo, ScheduledBatch, StepOutput
from model_svc.model.attention import AttentionBackend
from model_svc.model.loader import LoadedModel
from model_svc.model.paged import PagedKV
from model_svc.runner.input_batch import InputBatch, StepInput
from model_svc.runner.sampler import NOT_FINITE, RowSampling, sample

NOT_FINITE_ERROR = "the model's scores for the next token are not finite (NaN or infinity), so none can be drawn"


class TorchModelRunner:
    """Runs one model on one device. Not safe for several threads."""

    info: RunnerInfo

    def __init__(
        self, model: LoadedModel, kv: PagedKV, backend: AttentionBackend, input_batch: InputBatch, info: RunnerInfo
    ) -> None:
        self.info = info
        self._model = model
        self._kv = kv
        self._backend = backend
        self._input_batch = input_batch
        self._tainted_blocks: set[int] = set()

    @torch.inference_mode()
    def run(self, batch: ScheduledBatch) -> StepOutput:
        """See `ModelRunner.run`. A row whose logits are not finite gets None and an entry in `errors`."""
        if self._tainted_blocks:
            self._clean_fresh_blocks(batch)
        inputs = self._input_batch.build(batch)
        logits = self._forward(inputs)
        if not inputs.sampled_rows:
            return StepOutput(token_ids=(None,) * len(batch.rows))
        sequences = [batch.rows[row].sequence for row in inputs.sampled_rows]
        drawn = sample(logits, [RowSampling(s.sampling, s.choice, s.num_outputs) for s in sequences])
        token_ids: list[int | None] = [None] * len(batch.rows)
        errors: dict[int, str] = {}
        for row, token_id in zip(inputs.sampled_rows, drawn, strict=True):
            if token_id == NOT_FINITE:
                errors[row] = NOT_FINITE_ERROR
                self._tainted_blocks.update(batch.rows[row].sequence.block_table)
            else:
                token_ids[row] = token_id
        return StepOutput(token_ids=tuple(token_ids), errors=errors)

    def close(self) -> None:
        """Drop the model and its cache; the runner is of no use afterwards."""
        on_gpu = self._model.device.type == "cuda"
        del self._model, self._kv, self._input_batch
        if on_gpu:
            torch.cuda.empty_cache()

    def _forward(self, inputs: StepInput) -> torch.Tensor:
        return self._model.logits(inputs.token_ids, inputs.positions, inputs.sampled_tokens, inputs.step, self._backend)

    def _clean_fresh_blocks(self, batch: ScheduledBatch) -> None:
        """Zero the blocks that a row begins in this step and that a NaN may have been left in.

        Masked positions enter attention as 0 × value, which a NaN survives: without this, the next owner of a block
        that a broken sequence gave back would break too.
        """
        block_size = self._kv.block_size
        fresh: set[int] = set()
        for row in batch.rows:
            computed = row.sequence.num_computed_tokens
            first, last = -(-computed // block_size), -(-(computed + row.num_new_tokens) // block_size)
            fresh.update(row.sequence.block_table[first:last])
        fresh &= self._tainted_blocks
        if fresh:
            self._kv.clear(sorted(fresh))
            self._tainted_blocks -= fresh
