"""Changes logits before a token is drawn, as each request asks, for greedy and sampled rows alike.

In this order, on fp32 copies of the rows concerned (log-probabilities are of the logits as the model gave them):

1. repetition penalty (Keskar et al., 2019; transformers' RepetitionPenaltyLogitsProcessor): the logit of a token in
   prompt or output is divided by it where positive, multiplied where not;
2. presence and frequency penalty (OpenAI): logit -= presence * (count > 0) + frequency * count, over output tokens;
3. logit bias: added (transformers' SequenceBiasLogitsProcessor);
4. minus infinity for: the last id of a banned sequence whose other ids are the tail of prompt and output
   (transformers' NoBadWordsLogitsProcessor), stop ids before min_tokens (MinNewTokensLengthLogitsProcessor),
   every id but the allowed ones, where a request names some, and every id that a request's constraint does not allow.

Rows that ask for none of it are not touched. Ids beyond the logits' width cannot be drawn and are passed over. Does not
know how a token is drawn, nor what a stop is.
"""

from collections.abc import Iterable
from collections.abc import Sequence as Rows
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from model_svc.engine.sequence import Sequence
from model_svc.grammar.bench import StepMasks
from model_svc.model.upload import to_device, together
from model_svc.runner.grammar_masks import forbid
from model_svc.runner.token_bias import TokenBias, has_bias
from model_svc.runner.token_counts import TokenCounts
from tokenwire.errors import Internal
from tokenwire.sampling import SamplingParams

SMALLEST_REPETITION_PENALTY = 1e-30
"""Below it a logit divided by the penalty would overflow fp32."""


@dataclass(frozen=True, slots=True)
class ChangedLogits:
    """The rows of a step whose requests change their logits."""

    rows: list[int]
    """[A]: their indices among the step's rows."""
    index: Tensor
    """[A] int64: the same, on the device."""
    logits: Tensor
    """[A, vocab_size] fp32."""


class LogitsChanger:
    """Keeps what requests ask for on the device, by slot; slots are below `num_slots`."""

    def __init__(self, num_slots: int, vocab_size: int, device: torch.device) -> None:
        self._num_slots = num_slots
        self._device = device
        self._counts = TokenCounts(num_slots, vocab_size, device)
        self._bias = TokenBias(num_slots, vocab_size, device)

    def change(
        self,
        logits: Tensor,
        sequences: Rows[Sequence],
        drafts: Rows[list[int]] | None = None,
        masks: StepMasks | None = None,
    ) -> ChangedLogits | None:
        """What the rows' requests make of `logits` [N, vocab_size], any float type, not changed; None: nothing.

        `drafts` [N]: what is taken for each sequence's tokens after its own; penalties cannot be had with any. `masks`:
        of the constrained ones among them, for which it waits. Raises Internal for a sequence without a slot of its
        own.
        """
        if drafts is None:
            banned = [banned_next(sequence) for sequence in sequences]
        else:
            banned = [banned_next(sequence, after) for sequence, after in zip(sequences, drafts, strict=True)]
        penalised = [sequence.sampling.is_penalised for sequence in sequences]
        biased = [has_bias(sequence.sampling) for sequence in sequences]
        constrained = [sequence.constraint is not None for sequence in sequences]
        rows = [i for i in range(len(sequences)) if penalised[i] or biased[i] or banned[i] or constrained[i]]
        if not rows:
            return None
        self._check_slots({sequences[i].sequence_id: sequences[i] for i in rows if penalised[i] or biased[i]}.values())
        if drafts is not None and any(penalised[i] and drafts[i] for i in rows):
            raise Internal("penalties of a token after a draft are not computed")
        width = logits.shape[-1]
        index, slots, bias_rows, bias_slots, bans, constrained_rows = together(
            [
                np.array(rows),
                np.array([max(0, sequences[i].slot) for i in rows]),
                np.array([at for at, i in enumerate(rows) if biased[i]], dtype=np.int64),
                np.array([sequences[i].slot for i in rows if biased[i]], dtype=np.int64),
                np.array([at * width + t for at, i in enumerate(rows) for t in banned[i] if t < width], dtype=np.int64),
                np.array([at for at, i in enumerate(rows) if constrained[i]], dtype=np.int64),
            ],
            self._device,
        )
        scores = logits.index_select(0, index).float()
        if any(penalised):
            self._counts.update([sequences[i] for i in rows if penalised[i]])
            self._penalise(scores, slots, [sequences[i].sampling for i in rows])
        if any(biased):
            self._bias.update([sequences[i] for i in rows if biased[i]])
            scores.index_add_(0, bias_rows, self._bias.table.index_select(0, bias_slots))
        if len(bans):
            scores.view(-1).index_fill_(0, bans, -torch.inf)
        if masks is not None and any(constrained):
            masks.wait()
            after = [len(drafts[i]) if drafts is not None else 0 for i in rows if constrained[i]]
            firsts = [masks.row_of[sequences[i].sequence_id] for i in rows if constrained[i]]
            bits = masks.bits[np.add(firsts, after)]
            forbid(scores, constrained_rows, to_device(bits, self._device))
        return ChangedLogits(rows, index, scores)

    def forget(self) -> None:
        """What is kept by slot may be half written; make it anew from the sequences when they come again."""
        self._counts.forget()
        self._bias.forget()

    def _penalise(self, scores: Tensor, slots: Tensor, params: Rows[SamplingParams]) -> None:
        """Penalise [A, V] scores in place. A row that asks for none has neutral ones, whatever its slot's row holds."""
        values = [[p.repetition_penalty, p.presence_penalty, p.frequency_penalty] for p in params]
        columns = to_device(np.array(values, dtype=np.float32), self._device)
        seen, counts = self._counts.seen.index_select(0, slots), self._counts.outputs.index_select(0, slots)
        penalise = penalise_few if self._device.type == "cpu" else penalise_all
        penalise(scores, seen, counts, columns)

    def _check_slots(self, sequences: Iterable[Sequence]) -> None:
        slots = [sequence.slot for sequence in sequences]
        if slots and (min(slots) < 0 or max(slots) >= self._num_slots or len(set(slots)) < len(slots)):
            raise Internal(f"running sequences need slots of their own below {self._num_slots}, not {slots}")


def penalise_all(scores: Tensor, seen: Tensor, counts: Tensor, columns: Tensor) -> None:
    """Penalise [A, V] scores in place: the whole tables, without a wait. `columns`: [A, 3], see `penalised`."""
    scores.copy_(torch.where(seen, penalised(scores, counts, columns[:, None]), scores))


def penalise_few(scores: Tensor, seen: Tensor, counts: Tensor, columns: Tensor) -> None:
    """`penalise_all` on a CPU, where finding the few tokens seen is quicker than a pass over the whole tables."""
    entries = torch.from_numpy(seen.view(-1).numpy().nonzero()[0])
    flat = scores.view(-1)
    flat[entries] = penalised(flat[entries], counts.view(-1)[entries], columns[entries // scores.shape[-1]])


def penalised(scores: Tensor, counts: Tensor, columns: Tensor) -> Tensor:
    """`scores` of tokens seen in prompt or output after all three penalties.

    `counts`: how often each is in the output, of the same shape. `columns`: [..., 3] repetition, presence and frequency
    penalty, of a shape that broadcasts.
    """
    repetition, presence, frequency = columns.unbind(-1)
    repetition = repetition.clamp(min=SMALLEST_REPETITION_PENALTY)
    scores = torch.where(scores > 0, scores / repetition, scores * repetition)
    return scores - (presence * (counts > 0) + frequency * counts)


def is_changed(sequence: Sequence) -> bool:
    """Whether its request may change the logits of its next token."""
    if sequence.constraint is not None:
        return True
    return sequence.sampling.is_penalised or has_bias(sequence.sampling) or bool(banned_next(sequence))


def banned_next(sequence: Sequence, drafts: Rows[int] = ()) -> list[int]:
    """Ids that may not come next and might come later: stop ids before min_tokens, last ids of banned sequences.

    Next is what follows `drafts`, as if they were the sequence's own tokens.
    """
    early = sequence.num_outputs + len(drafts) < sequence.stop.min_tokens
    found = list(sequence.stop.stop_token_ids) if early else []
    last = drafts[-1] if drafts else sequence.token_ids[-1]
    for banned in sequence.sampling.banned_sequences:
        num_before = len(banned) - 1
        if num_before and banned[-2] == last and last_tokens(sequence, drafts, num_before) == banned[:-1]:
            found.append(banned[-1])
    return found


def last_tokens(sequence: Sequence, drafts: Rows[int], num_tokens: int) -> tuple[int, ...]:
    """The last `num_tokens` tokens of sequence and drafts together, or all there are."""
    num_own = num_tokens - len(drafts)
    return (*(sequence.token_ids[-num_own:] if num_own > 0 else ()), *drafts[-num_tokens:])
