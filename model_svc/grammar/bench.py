"""The engine process's side of grammars: matchers are made and masks are filled in threads, beside the step.

The library releases the interpreter lock while it works, so a mask costs the engine no time as long as the forward pass
takes longer, and a matcher that takes long to make keeps its own sequence waiting and no other. Knows sequences; does
not know tensors or the device.
"""

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence as Rows
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from model_svc.engine.sequence import PENDING, Sequence, SequenceStatus
from model_svc.grammar.library import new_matcher, reason_of
from model_svc.grammar.matching import Matching, Outcome
from model_svc.grammar.vocabulary import Vocabulary
from model_svc.host import usable_cores
from tokenwire.errors import Internal, InvalidRequest, TokenwireError

if TYPE_CHECKING:  # see `vocabulary`
    from llguidance import LLMatcher

log = logging.getLogger(__name__)

NUM_KEPT = 64
"""Grammars whose matcher is kept to be copied, those used last."""
MAX_THREADS = 8
ROWS_PER_THREAD = 8
"""Fewer rows are not worth another thread: handing work over takes about as long as a mask."""


class StepMasks:
    """Which tokens may come next, for the constrained sequences of a step and after each of their drafts.

    Being filled until `wait` returns.
    """

    def __init__(self, sequences: Rows[Sequence], drafts: Rows[list[int]], mask_bytes: int) -> None:
        """`drafts`: each sequence's."""
        ends = list(accumulate((1 + len(its_own) for its_own in drafts), initial=0))
        self.rows = [range(first, end) for first, end in pairwise(ends)]
        """By sequence: its rows of `bits`, for its next token and then for those after its drafts."""
        self.row_of = {sequence.sequence_id: first for sequence, first in zip(sequences, ends, strict=False)}
        """By sequence id: the first of them."""
        self.bits: NDArray[np.uint8] = np.empty((ends[-1], mask_bytes), dtype=np.uint8)
        """[A, mask_bytes]: see `matching.Bits`."""
        self.outcomes = [Outcome.TOKENS] * len(sequences)
        """By sequence: of its next token."""
        self.busy_s = 0.0
        """Seconds that the threads took together."""
        self.waited_s = 0.0
        """Seconds that the step waited for them."""
        self._index_of = {sequence.sequence_id: index for index, sequence in enumerate(sequences)}
        self._sequences = sequences
        self._futures: list[Future[float]] = []

    def start(self, futures: list[Future[float]]) -> None:
        """These fill the rows; each gives the seconds it took."""
        self._futures = futures

    def wait(self) -> None:
        """Until every row is filled. Raises Internal for a bug in filling one."""
        started_s = time.perf_counter()
        futures, self._futures = self._futures, []
        self.busy_s += sum(future.result() for future in futures)
        self.waited_s += time.perf_counter() - started_s

    def is_complete(self, sequence_id: int) -> bool:
        """Whether this sequence ends here without another token."""
        index = self._index_of.get(sequence_id)
        return index is not None and self.outcomes[index] is Outcome.COMPLETE

    def error_of(self, sequence_id: int) -> TokenwireError | None:
        """Why this sequence cannot go on."""
        index = self._index_of.get(sequence_id)
        if index is None:
            return None
        matching = self._sequences[index].constraint
        return matching.error if matching is not None else None


class GrammarBench:
    """One per engine process. Called from the engine's thread alone."""

    def __init__(self, vocabulary: Vocabulary, num_threads: int = 0) -> None:
        """`num_threads`: that fill masks; 0: by the cores this process may use."""
        self.vocabulary = vocabulary
        self._num_threads = num_threads or max(1, min(MAX_THREADS, usable_cores() // 2))
        self._makers = ThreadPoolExecutor(1, "grammar-maker")
        """One thread makes matchers: a large grammar delays other grammars, never a mask."""
        self._fillers = ThreadPoolExecutor(self._num_threads, "grammar-mask")
        self._kept: OrderedDict[str, LLMatcher] = OrderedDict()
        self._lock = threading.Lock()
        """Around `_kept` and what is in it: a matcher is not to be copied by two threads at once."""

    def prepare(self, sequence: Sequence) -> None:
        """Begin to make a new sequence's matcher; `Matching.is_ready` says when it is there.

        None is made for a sequence that has ended by the time it is its turn.
        """
        if sequence.constraint is not None:
            self._makers.submit(self._make_for, sequence)

    def begin(self, sequences: Rows[Sequence], drafts: Rows[list[int]] | None = None) -> StepMasks | None:
        """Begin to fill the masks of the sequences that have a constraint; None where none has one.

        Each sequence comes once; with `drafts`, each one's, there are masks after every draft too. Their last tokens
        must be known. A sequence that was not prepared, as on a rank that follows, is made ready on the way.
        """
        drafts = [[]] * len(sequences) if drafts is None else drafts
        chosen = [pair for pair in zip(sequences, drafts, strict=True) if pair[0].constraint is not None]
        if not chosen:
            return None
        constrained, its_drafts = [sequence for sequence, _ in chosen], [after for _, after in chosen]
        masks = StepMasks(constrained, its_drafts, self.vocabulary.mask_bytes)
        work = [
            (sequence, new_output_of(sequence), after)
            for sequence, after in zip(constrained, its_drafts, strict=True)
        ]  # fmt: skip
        num_parts = min(self._num_threads, len(work), -(-len(masks.bits) // ROWS_PER_THREAD))
        parts = [range(first, len(work), num_parts) for first in range(num_parts)]
        masks.start([self._fillers.submit(self._fill, masks, work, part) for part in parts])
        return masks

    def forced(self, sequence: Sequence, num_tokens: int) -> list[int]:
        """What must follow a sequence's tokens, all known, by its constraint, as tokens that it is likely made of.

        `num_tokens` at most. A guess to verify: see `Matching.forced`, and MAX_FORCED_S there for how long it may take.
        """
        matching = sequence.constraint
        if matching is None or not matching.is_ready:
            return []
        try:
            return matching.forced(new_output_of(sequence), self.vocabulary, num_tokens)
        except BaseException as error:
            if isinstance(error, Exception | KeyboardInterrupt | SystemExit):
                raise
            log.error("what must follow could not be found", exc_info=error)
            return []

    def close(self) -> None:
        """End the threads; what they are at is finished."""
        self._makers.shutdown(wait=False, cancel_futures=True)
        self._fillers.shutdown(wait=False, cancel_futures=True)

    def _make_for(self, sequence: Sequence) -> None:
        """Runs in a thread. A sequence that waits for its matcher is not changed meanwhile but by its end."""
        if sequence.constraint is not None and sequence.status is not SequenceStatus.FINISHED:
            self._make(sequence.constraint, output_of(sequence))

    def _make(self, matching: Matching, output: list[int]) -> None:
        """Runs in a thread. `output`: all output tokens until now."""
        try:
            matching.matcher = self._copy(matching.grammar)
            matching.consume(output)
        except TokenwireError as error:
            matching.error = error
        except BaseException as error:  # what the library raises when it fails itself is no Exception
            log.error("a matcher could not be made", exc_info=error)
            matching.error = Internal("the constraint's matcher could not be made")
        finally:
            matching.is_ready = True

    def _copy(self, grammar: str) -> "LLMatcher":
        with self._lock:
            matcher = self._kept.get(grammar)
            if matcher is not None:
                self._kept.move_to_end(grammar)
                return matcher.deep_copy()
        matcher = new_matcher(self.vocabulary, grammar)
        if matcher.is_error():
            why = reason_of(matcher.get_error())
            raise InvalidRequest(f"options.constraint: {why}", reason="CONSTRAINT_FAILED")
        matcher.compute_bitmask()  # what the first mask builds, copies inherit
        copy = matcher.deep_copy()
        with self._lock:
            self._kept[grammar] = matcher
            while len(self._kept) > NUM_KEPT:
                self._kept.popitem(last=False)
        return copy

    def _fill(self, masks: StepMasks, work: Rows[tuple[Sequence, list[int], list[int]]], part: range) -> float:
        """Runs in a thread. `work`: sequences with their new output and drafts. Gives the seconds it took."""
        started_s = time.perf_counter()
        for index in part:
            sequence, output, drafts = work[index]
            matching, bits = sequence.constraint, masks.bits[masks.rows[index].start : masks.rows[index].stop]
            assert matching is not None
            try:
                if not matching.is_ready:
                    self._make(matching, output)
                else:
                    matching.consume(output)
                masks.outcomes[index] = matching.fill(bits[0], self.vocabulary, sequence.stop.stop_token_ids)
                if drafts:
                    matching.fill_after(bits, self.vocabulary, sequence.stop.stop_token_ids, drafts)
            except BaseException as error:  # as above
                log.error("a mask could not be filled", exc_info=error)
                matching.error = Internal("the constraint's mask could not be filled")
        return time.perf_counter() - started_s


def output_of(sequence: Sequence) -> list[int]:
    """Every output token, those made before a resume included."""
    return sequence.token_ids[sequence.num_original_prompt_tokens :]


def new_output_of(sequence: Sequence) -> list[int]:
    """Output tokens that its matcher has not seen. Raises Internal for one that is not known."""
    assert sequence.constraint is not None
    new = sequence.token_ids[sequence.num_original_prompt_tokens + sequence.constraint.num_consumed :]
    if new and new[-1] == PENDING:
        raise Internal("a constrained sequence was launched before its last token was known")
    return new
