"""The torch ModelRunner: the only caller of the device. Batch in, sampled tokens and log-probabilities out.

Knows the model, its cache and its buffers. Does not know why a batch looks as it does (the scheduler's business),
nor the wire.
"""

import torch

from model_svc.engine.batch import OutOfMemory, RunnerInfo, ScheduledBatch, StepOutput
from model_svc.model.attention import AttentionBackend
from model_svc.model.loader import LoadedModel
from model_svc.model.paged import PagedKV
from model_svc.runner.input_batch import InputBatch, StepInput
from model_svc.runner.logits import LogitsChanger
from model_svc.runner.logprobs import score_prompt, score_sampled
from model_svc.runner.memory import raising_out_of_memory
from model_svc.runner.next_token import next_tokens
from model_svc.runner.step_output import make_step_output
from tokenwire.errors import Internal


class TorchModelRunner:
    """Runs one model on one device. Not safe for several threads."""

    info: RunnerInfo

    def __init__(
        self,
        model: LoadedModel,
        kv: PagedKV,
        backend: AttentionBackend,
        input_batch: InputBatch,
        info: RunnerInfo,
    ) -> None:
        self.info = info
        self._model = model
        self._kv = kv
        self._backend = backend
        self._input_batch = input_batch
        self._changer = LogitsChanger(info.max_batch_size, model.vocab_size, model.device)
        self._tainted_blocks: set[int] = set()

    @torch.inference_mode()
    def run(self, batch: ScheduledBatch) -> StepOutput:
        """See `ModelRunner.run`. A row that no token can be drawn for gets None and an entry in `errors`."""
        try:
            with raising_out_of_memory(self._model.device):
                return self._run(batch)
        except OutOfMemory:
            self._changer.forget()
            self._tainted_blocks.update(block for row in batch.rows for block in row.sequence.block_table)
            raise

    def _run(self, batch: ScheduledBatch) -> StepOutput:
        if self._tainted_blocks:
            self._clean_fresh_blocks(batch)
        inputs = self._input_batch.build(batch)
        logits = self._forward(inputs)  # [S + P, vocab_size]
        if not len(logits):
            return StepOutput(token_ids=(None,) * len(batch.rows))
        num_sampled = len(inputs.sampled_rows)
        sequences = [batch.rows[row].sequence for row in inputs.sampled_rows]
        tokens = next_tokens(logits[:num_sampled], sequences, self._changer)
        sampled = score_sampled(logits, tokens, [sequence.logprobs for sequence in sequences])
        prompt = score_prompt(logits[num_sampled:], inputs.prompt_targets, inputs.prompt_spans)
        output = make_step_output(batch, inputs, tokens, sampled, prompt)
        for row, error in output.errors.items():
            if isinstance(error, Internal):
                self._tainted_blocks.update(batch.rows[row].sequence.block_table)
        return output

    def close(self) -> None:
        """Drop the model and its cache; the runner is of no use afterwards."""
        on_gpu = self._model.device.type == "cuda"
        del self._model, self._kv, self._input_batch, self._changer
        if on_gpu:
            torch.cuda.empty_cache()

    def _forward(self, inputs: StepInput) -> torch.Tensor:
        return self._model.logits(inputs.token_ids, inputs.positions, inputs.kept_tokens, inputs.step, self._backend)

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
