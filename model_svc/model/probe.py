"""The load-time probe: refuses a model that paged, packed execution would serve wrongly.

Some models accept an attention they never call, some mix neighbours in a packed row (recurrent layers), some scale
rotary embeddings by the longest position in the batch. So two sequences of different length run packed together in
chunks and then token by token, one of them at positions near the longest context, and must give what each gives alone
through transformers' own eager attention. Then either one is swapped for another, and the rest must not change: that
comparison needs no allowance for another order of additions, so it finds even small leaks in any dtype.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from model_svc.model.agreement import EAGER_TOLERANCE, difference
from model_svc.model.attention import ATTENTION_NAME, AttentionBackend
from model_svc.model.compiled import uncompiled
from model_svc.model.discovery import Unservable, discover
from model_svc.model.loader import LoadedModel
from model_svc.model.paged import LayerKVSpec, PagedKV, allocate, plan_step, positions_and_slots, query_starts_of
from tokenwire.errors import FailedPrecondition

LONG_TOKENS, SHORT_TOKENS = 24, 9
TAIL_TOKENS = 3
"""How many last tokens are left for the steps after the packed prefill."""
NEIGHBOUR_TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
"""Largest relative difference that another neighbour may make; dense models make none at all."""


@dataclass(slots=True)
class ProbeSequence:
    """A sequence of the probe: its tokens [n], the positions they claim, its blocks, and how many are computed."""

    token_ids: Tensor
    first_position: int
    blocks: list[int]
    num_computed: int = 0


@torch.inference_mode()
def kv_specs(model: LoadedModel) -> tuple[LayerKVSpec, ...]:
    """The cache each layer needs.

    Raises FailedPrecondition with reason MODEL_UNSUPPORTED when its attention means something that is not computed
    here. Leaves the model as it was.
    """
    with _refusals(model):
        return discover(model)


@torch.inference_mode()
def probe(
    model: LoadedModel,
    backend: AttentionBackend,
    specs: tuple[LayerKVSpec, ...],
    *,
    block_size: int,
    max_context_tokens: int,
) -> None:
    """Let the model, with its `kv_specs`, show that it is served rightly up to this context.

    Raises FailedPrecondition with reason MODEL_UNSUPPORTED, naming the reason. Leaves the model as it was.
    """
    with _refusals(model):
        _Trial(model, backend, specs, block_size, max_context_tokens).run()


@contextmanager
def _refusals(model: LoadedModel) -> Iterator[None]:
    """What makes a model unservable, as the error that an operator reads. Whatever its unknown code raises does."""
    try:
        yield
    except Exception as error:
        reason = error if isinstance(error, Unservable) else f"a trial run failed: {type(error).__name__}: {error}"
        raise FailedPrecondition(
            f"model: {type(model.module).__name__} cannot be served: {reason}", reason="MODEL_UNSUPPORTED"
        ) from error


class _Trial:
    """The numeric part of the probe, on a small cache of its own."""

    def __init__(
        self,
        model: LoadedModel,
        backend: AttentionBackend,
        specs: tuple[LayerKVSpec, ...],
        block_size: int,
        max_context_tokens: int,
    ) -> None:
        self.model, self.backend, self.block_size = model, backend, block_size
        self.max_context_tokens = max_context_tokens
        self.num_long = min(LONG_TOKENS, max_context_tokens)
        self.num_short = min(SHORT_TOKENS, max_context_tokens)
        if self.num_short <= TAIL_TOKENS:
            raise Unservable(f"a context of {max_context_tokens} tokens is too short for the load-time check")
        self.blocks_each = -(-self.num_long // block_size)
        self.kv: PagedKV = allocate(specs, 2 * self.blocks_each, block_size, model.dtype, model.device)
        self.random = torch.Generator().manual_seed(0)

    def run(self) -> None:
        """Raise Unservable unless packed and separate runs agree."""
        far = self.max_context_tokens - self.num_short
        long = self.sequence(self.num_long, 0, lane=0)
        short = self.sequence(self.num_short, far, lane=1)
        other_long = self.sequence(self.num_long, 0, lane=0)
        other_short = self.sequence(self.num_short, 0, lane=1)
        eager = [self.eager(long), self.eager(short)]

        heads = [self.num_long - TAIL_TOKENS, self.num_short - TAIL_TOKENS]
        all_of_short = [heads[0], self.num_short]  # up to the last position that there is
        with_short = self.step([long, short], all_of_short, restart=True)
        with_other_short = self.step([long, other_short], all_of_short, restart=True)
        with_other_long = self.step([other_long, short], heads, restart=True)
        together = self.step([long, short], heads, restart=True)
        if not difference(with_short[0], with_other_short[0]) <= self.neighbour_tolerance:
            raise Unservable(
                "a sequence's result changes with the positions or tokens of its neighbour in the batch (rotary "
                "scaling by the longest position, if any, can be avoided by a lower --max-context-tokens)"
            )
        if not difference(together[1], with_other_long[1]) <= self.neighbour_tolerance:
            raise Unservable("a sequence's result changes with the tokens packed before it (a recurrent layer?)")
        # The tail: a token of each, then a chunk beside a token, then what is left; so that every path is compared.
        tails = [[1, 1], [2, 1], [0, 1]]
        paged = [[together[0]], [together[1]]]
        for counts in tails:
            for sequence, logits in enumerate(self.step([long, short], counts)):
                paged[sequence].append(logits)
        for name, alone, parts in zip(("longer", "shorter"), eager, paged, strict=True):
            found = difference(torch.cat(parts), alone)
            if not found <= EAGER_TOLERANCE[self.model.dtype]:
                raise Unservable(
                    f"the {name} of two packed sequences differs from transformers' eager attention by {found:.2g}, "
                    f"over the {EAGER_TOLERANCE[self.model.dtype]:.2g} that {self.model.dtype} explains"
                )

    @property
    def neighbour_tolerance(self) -> float:
        return NEIGHBOUR_TOLERANCE[self.model.dtype]

    def sequence(self, num_tokens: int, first_position: int, *, lane: int) -> ProbeSequence:
        """Random tokens, in one of the two lanes of blocks."""
        token_ids = torch.randint(self.model.vocab_size, (num_tokens,), generator=self.random)
        # Blocks in descending order, so that a backend that ignores the table is found out.
        blocks = list(range(self.blocks_each * (lane + 1) - 1, self.blocks_each * lane - 1, -1))
        return ProbeSequence(token_ids.to(self.model.device), first_position, blocks)

    def eager(self, sequence: ProbeSequence) -> Tensor:
        """Logits [TAIL_TOKENS + 1, V] of the sequence's last tokens, alone, by transformers itself."""
        self.model.module.set_attn_implementation("eager")
        try:
            num_tokens = len(sequence.token_ids)
            positions = torch.arange(num_tokens, device=self.model.device) + sequence.first_position
            with uncompiled(self.model.module):
                output = self.model.module(
                    input_ids=sequence.token_ids[None], position_ids=positions[None], use_cache=False, return_dict=True
                )
        finally:
            self.model.module.set_attn_implementation(ATTENTION_NAME)
        logits: Tensor = output.logits[0, -TAIL_TOKENS - 1 :]
        return logits.float()

    def step(self, sequences: list[ProbeSequence], counts: list[int], *, restart: bool = False) -> list[Tensor]:
        """Compute the next `counts` tokens of each in one packed step; their logits, of a chunk's start the last only.

        `restart` computes from the first token again. With it, each gives [1, V]; later steps give [count, V].
        """
        if restart:
            for sequence in sequences:
                sequence.num_computed = 0
        # Decodes come first in a flattened row.
        order = [i for i in range(len(sequences)) if counts[i] == 1] + [
            i for i in range(len(sequences)) if counts[i] > 1
        ]
        rows = [sequences[i] for i in order]
        num_new = np.array([counts[i] for i in order], dtype=np.int64)
        num_computed = np.array([row.num_computed for row in rows], dtype=np.int64)
        table = np.array([row.blocks for row in rows], dtype=np.int64)
        positions, slots = positions_and_slots(num_computed, num_new, table, self.block_size)
        claimed = positions + np.repeat([row.first_position for row in rows], num_new)
        plan = plan_step(
            self.kv, num_computed, num_new, self.tensor(slots), self.tensor(table),
            self.tensor(num_computed + num_new), self.tensor(query_starts_of(num_new)),
        )  # fmt: skip
        tokens = torch.cat(
            [row.token_ids[row.num_computed :][:n] for row, n in zip(rows, num_new.tolist(), strict=True)]
        )
        kept = [1 if restart else int(n) for n in num_new]
        ends = np.cumsum(num_new)
        keep = np.concatenate([np.arange(end - k, end) for end, k in zip(ends, kept, strict=True)])
        logits = self.model.logits(tokens, self.tensor(claimed), self.tensor(keep), plan, self.backend).float()
        results = [logits[:0]] * len(sequences)
        for index, part in zip(order, torch.split(logits, kept), strict=True):
            results[index] = part
            sequences[index].num_computed += counts[index]
        return results

    def tensor(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(self.model.device)
