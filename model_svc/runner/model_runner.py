"""The torch ModelRunner: the only caller of the device. Batch in, sampled tokens and log-probabilities out.

Knows the model, its cache and its buffers. Does not know why a batch looks as it does (the scheduler's business),
nor the wire.
"""

import numpy as np
import torch

from model_svc.engine.adapters import AdapterStore
from model_svc.engine.batch import DraftModel, OutOfMemory, RunnerInfo, ScheduledBatch, StepOutput
from model_svc.engine.phase_clock import PhaseClock
from model_svc.engine.sequence import Sequence
from model_svc.grammar.bench import GrammarBench, StepMasks
from model_svc.model.adapters import AdapterBank
from model_svc.model.attention import AttentionBackend
from model_svc.model.loader import LoadedModel
from model_svc.model.paged import PagedKV, PagedStep
from model_svc.model.upload import to_device
from model_svc.runner.adapter_store import TorchAdapterStore
from model_svc.runner.decode_graphs import DecodeGraphs
from model_svc.runner.input_batch import InputBatch, StepInput
from model_svc.runner.logits import LogitsChanger
from model_svc.runner.logprobs import score_prompt, score_sampled
from model_svc.runner.memory import raising_out_of_memory
from model_svc.runner.next_token import draws_of, is_plain, next_tokens
from model_svc.runner.pooling import LaunchedVectors, Pooler, PoolPlan
from model_svc.runner.step_output import LaunchedStep, make_step_output
from model_svc.runner.transfer import HostCopies
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
        graphs: DecodeGraphs | None = None,
        grammars: GrammarBench | None = None,
        bank: AdapterBank | None = None,
        draft_model: DraftModel | None = None,
    ) -> None:
        self.info = info
        self.grammars = grammars
        self.draft_model = draft_model
        self._bank = bank
        self.adapters: AdapterStore | None = None if bank is None else TorchAdapterStore(bank, info.max_adapter_bytes)
        self.phases = PhaseClock()
        self._graphs = graphs
        self._model = model
        self._kv = kv
        self._backend = backend
        self._input_batch = input_batch
        self._changer = LogitsChanger(info.max_batch_size, model.vocab_size, model.device)
        self._pooler = Pooler(info.max_batch_size, model.device)
        self._tainted_blocks: set[int] = set()
        self._broken_ends: dict[int, tuple[int, int]] = {}
        """By slot: a sequence_id, and where drafts of it ended that were not accepted and may have left a NaN."""
        self._last_tokens = torch.zeros(info.max_batch_size, dtype=torch.int64, device=model.device)
        """By slot: what the last step sampled for whoever had it; what PENDING stands for."""

    @torch.inference_mode()
    def launch(self, batch: ScheduledBatch) -> LaunchedStep:
        """See `ModelRunner.launch`. On a GPU nothing here waits for it, if the step before last was collected."""
        try:
            with raising_out_of_memory(self._model.device):
                return self._launch(batch)
        except Exception as error:
            self._changer.forget()
            self._input_batch.forget()
            if isinstance(error, OutOfMemory):
                self._tainted_blocks.update(block for row in batch.rows for block in row.sequence.block_table)
            raise

    def _launch(self, batch: ScheduledBatch) -> LaunchedStep:
        if self._tainted_blocks:
            self._clean_fresh_blocks(batch)
        if self._broken_ends:
            self._clean_after_drafts(batch)
        if self._bank is not None:
            for row in batch.rows:
                if row.sequence.adapter:
                    self._bank.place(row.sequence.adapter_slot, row.sequence.adapter)
        inputs = self._input_batch.build(batch, self._last_tokens)
        block_tables = [row.sequence.block_table for row in batch.rows]
        embedded = self._pooler.plan(batch)
        sequences = [batch.rows[row].sequence for row in inputs.sampled_rows]
        masks: StepMasks | None = None
        if self.grammars is not None:
            sampling = [row for row in batch.rows if row.samples]
            masks = self.grammars.begin([row.sequence for row in sampling], [row.drafts for row in sampling])
        self.phases.lap("prepare")
        try:
            graphs = self._graphs
            replayed = graphs is not None and replays_decodes(inputs, embedded) and graphs.ready(inputs.step)
            told = replayed if graphs is not None and inputs.step.num_decodes else None
            logits, hidden = self._forward(inputs, replayed=replayed, wants_hidden=embedded is not None)
            vectors: LaunchedVectors | None = None
            if embedded is not None and hidden is not None:
                vectors = self._pooler.pool(hidden, batch, embedded, len(inputs.token_ids) - len(hidden))
            self.phases.lap("forward")
            if not len(logits):
                ended = HostCopies((), self._model.device)
                return LaunchedStep(batch, block_tables, inputs, ended, False, False, vectors, None, told)
            sampled = self._sample(logits, sequences, inputs, masks, replayed=replayed)
            return LaunchedStep(batch, block_tables, inputs, *sampled, vectors, masks, told)
        finally:
            if masks is not None:
                masks.wait()  # at the latest: nothing may be at work on a sequence's grammar when the step is over

    def _sample(
        self,
        logits: torch.Tensor,
        sequences: list[Sequence],
        inputs: StepInput,
        masks: StepMasks | None,
        *,
        replayed: bool,
    ) -> tuple[HostCopies, bool, bool]:
        """From logits [S + P, vocab_size] to what is on its way to the host; see `LaunchedStep`."""
        num_sampled = len(inputs.sampled_rows)
        tokens = self._next_tokens(logits[:num_sampled], sequences, inputs, masks, replayed=replayed)
        # What stands for no token becomes token 0: such a sequence ends, and its row of the next step is not looked at.
        # A row with drafts leaves any of its tokens: its sequence's next step is launched when they are known.
        self._last_tokens.index_copy_(0, inputs.sampled_slots, tokens.clamp(min=0))
        sampled = score_sampled(logits, tokens, [sequence.logprobs for sequence in sequences])
        prompt = score_prompt(logits[num_sampled:], inputs.prompt_targets, inputs.prompt_spans)
        copies = HostCopies((tokens, *(sampled or ()), *(prompt or ())), self._model.device)
        self.phases.lap("sample")
        return copies, sampled is not None, prompt is not None

    def collect(self, launched: LaunchedStep) -> StepOutput:
        """See `ModelRunner.collect`. A row that no token can be drawn for gets None and an entry in `errors`."""
        launched.copies.wait()
        self.phases.lap("wait")
        output = make_step_output(launched)
        for row, error in output.errors.items():
            if isinstance(error, Internal):
                self._tainted_blocks.update(launched.block_tables[row])
        for row in broken_by_drafts(launched.batch, output):
            self._tainted_blocks.update(launched.block_tables[row])
            scheduled = launched.batch.rows[row]
            if scheduled.sequence.slot >= 0:  # it has not been taken back meanwhile
                self._broken_ends[scheduled.sequence.slot] = scheduled.sequence.sequence_id, scheduled.end
        return output

    def close(self) -> None:
        """Drop the model and its cache; the runner is of no use afterwards."""
        on_gpu = self._model.device.type == "cuda"
        if self.grammars is not None:
            self.grammars.close()
        if self.draft_model is not None:
            self.draft_model.close()
        if self.adapters is not None:
            self.adapters.close()
        del self._model, self._kv, self._input_batch, self._changer, self._graphs, self._bank
        if on_gpu:
            torch.cuda.empty_cache()

    def _forward(
        self, inputs: StepInput, *, replayed: bool, wants_hidden: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """[S + P, vocab_size]: the logits that are wanted; and the hidden states of the step's last tokens, if wanted.

        Those are all tokens, or all but the decodes where these are replayed.
        """
        step = inputs.step
        if self._graphs is None or not replayed:
            return self._compute(inputs.token_ids, inputs.positions, inputs.kept_tokens, step, wants_hidden)
        num_kept, first_token = inputs.num_sampled_decodes, step.num_decodes
        logits = self._graphs.logits(inputs.token_ids, inputs.positions, step)
        if num_kept < step.num_decodes:
            logits = logits.index_select(0, inputs.kept_tokens[:num_kept])
        if len(step.num_new) == step.num_decodes:
            return logits, None
        of_chunks, hidden = self._compute(
            inputs.token_ids[first_token:], inputs.positions[first_token:], inputs.kept_tokens[num_kept:] - first_token,
            step.without_decodes(), wants_hidden,
        )  # fmt: skip
        return torch.cat((logits, of_chunks)), hidden

    def _compute(
        self, token_ids: torch.Tensor, positions: torch.Tensor, keep: torch.Tensor, step: PagedStep, wants_hidden: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Logits as `LoadedModel.logits`, and hidden states where they are wanted."""
        if wants_hidden:
            return self._model.logits_and_hidden(token_ids, positions, keep, step, self._backend)
        return self._model.logits(token_ids, positions, keep, step, self._backend), None

    def _next_tokens(
        self,
        logits: torch.Tensor,
        sequences: list[Sequence],
        inputs: StepInput,
        masks: StepMasks | None,
        *,
        replayed: bool,
    ) -> torch.Tensor:
        """[S]: see `next_tokens`. Decodes that were replayed are drawn by a graph too, where all of them are plain."""
        num_decodes, drafts = inputs.num_sampled_decodes, inputs.drafts_before
        decodes = sequences[:num_decodes]
        drawn: torch.Tensor | None = None
        if (
            self._graphs is not None and replayed and num_decodes == inputs.step.num_decodes
            and all(map(is_plain, decodes))
        ):  # fmt: skip
            drawn = self._graphs.tokens(draws_of(decodes))
        if drawn is None:
            return next_tokens(logits, sequences, self._changer, drafts, masks)
        if num_decodes == len(sequences):
            return drawn
        others = next_tokens(
            logits[num_decodes:], sequences[num_decodes:], self._changer, drafts and drafts[num_decodes:], masks
        )  # fmt: skip
        return torch.cat((drawn, others))

    def _clean_fresh_blocks(self, batch: ScheduledBatch) -> None:
        """Zero the blocks that a row begins in this step and that a NaN may have been left in.

        Masked positions enter attention as 0 × value, which a NaN survives: without this, the next owner of a block
        that a broken sequence gave back would break too.
        """
        block_size = self._kv.block_size
        fresh: set[int] = set()
        for row in batch.rows:
            first, last = -(-row.start // block_size), -(-row.end // block_size)
            fresh.update(row.sequence.block_table[first:last])
        fresh &= self._tainted_blocks
        if fresh:
            self._kv.clear(to_device(np.array(sorted(fresh), dtype=np.int64), self._kv.device))
            self._tainted_blocks -= fresh

    def _clean_after_drafts(self, batch: ScheduledBatch) -> None:
        """Zero what drafts may have broken behind the rows' tokens, for the same reason.

        Those positions are nobody else's for as long as the sequence keeps its slot. One that loses it, and with it its
        blocks, begins with other ones, clean by then. One that is left out of this step is looked after in its next.
        """
        size, slots = self._kv.block_size, []
        for row in batch.rows:
            sequence_id, end = self._broken_ends.pop(row.sequence.slot, (-1, 0))
            if sequence_id == row.sequence.sequence_id:
                table = row.sequence.block_table
                end = min(end, len(table) * size)
                slots += [table[position // size] * size + position % size for position in range(row.end, end)]
        if slots:
            self._kv.clear_slots(to_device(np.array(slots, dtype=np.int64), self._kv.device))


def broken_by_drafts(batch: ScheduledBatch, output: StepOutput) -> list[int]:
    """The rows with drafts that gave no token at some place: keys and values there may not be numbers."""
    cut = (row for row, after in output.after_drafts.items() if len(after.token_ids) < len(batch.rows[row].drafts))
    return [*cut, *(row for row in output.errors if batch.rows[row].drafts)]


def replays_decodes(inputs: StepInput, embedded: PoolPlan | None) -> bool:
    """Whether a recorded step fits this one's decodes: those give logits of their last token alone."""
    embeds_single = embedded is not None and embedded.has_single
    return inputs.step.num_decodes > 0 and not inputs.prompt_spans and not embeds_single
