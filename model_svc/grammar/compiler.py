"""Checks and compiles constraints where requests come in: in threads, bounded, remembered. The engine gets what passed.

A constraint is compiled once here to see that it can be, and that it stays cheap for some tokens; the engine process
then makes its own matcher of the same text (see `bench`). Knows the event loop; does not know sequences or the wire.
"""

import asyncio
import logging
import random
import re
import sys
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from model_svc.grammar.library import new_matcher, reason_of
from model_svc.grammar.places import place_of
from model_svc.grammar.source import field_of, grammar_of, grammar_of_schema, schema_of, schema_of_call
from model_svc.grammar.vocabulary import Vocabulary, load_vocabulary
from tokenwire.constraints import Calls, Constraint, ConstraintForm
from tokenwire.errors import FailedPrecondition, InvalidRequest, Overloaded, TokenwireError

NUM_KEPT = 512
"""Constraints whose verdict is remembered, those used last."""
MAX_KEPT_BYTES = 16 * 2**20
NUM_THREADS = 2
MAX_WAITING = 64
"""Constraints that may wait to be compiled; one more is refused."""
MAX_COMPILE_S = 1.0
"""Processor time of making one matcher."""
MAX_TRIED_MASK_S = 0.05
"""Processor time of one mask while a constraint is tried out; the engine allows five times as much."""
NUM_TRIED_TOKENS = 24
MAX_TRY_S = 0.2
"""Processor time that is spent on trying."""


class CompileMetrics(Protocol):
    """What is told of compilations."""

    def compiled(self, form: ConstraintForm, took_s: float, *, refused: bool) -> None:
        """A constraint was compiled."""

    def remembered(self) -> None:
        """One was asked for whose verdict was known."""


log = logging.getLogger(__name__)

EXPRESSION_ERROR = re.compile(r"(?:error: |\(in regex\): )((?:(?!error: ).)+?)(?: 1 \| start:|$)")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of a constraint."""

    grammar: str
    error: TokenwireError | None
    num_bytes: int

    def take(self) -> str:
        """The grammar. Raises what is wrong with it: a copy, since what is raised holds its callers' frames."""
        if self.error is not None:
            raise copy(self.error)
        return self.grammar


class GrammarCompiler:
    """One per gRPC process. Lives on the event loop."""

    def __init__(self, folder: Path | None, metrics: CompileMetrics) -> None:
        """`folder`: of the model; None: there is no model (the mock engine), and no constraint can be obeyed."""
        self._folder = folder
        self._metrics = metrics
        self._pool = ThreadPoolExecutor(NUM_THREADS, "grammar-compiler")
        self._vocabulary: Vocabulary | None = None
        self._unavailable: TokenwireError | None = None
        self._kept: OrderedDict[Constraint, Verdict] = OrderedDict()
        self._num_kept_bytes = 0
        self._running: dict[Constraint, asyncio.Future[Verdict]] = {}

    def load(self, vocab_size: int) -> None:
        """Read the vocabulary for logits of this size, unless it is there. Blocks; see `load_vocabulary`."""
        if self._vocabulary is not None and self._vocabulary.size == vocab_size:
            return
        try:
            if self._folder is None:
                raise FailedPrecondition(
                    "options.constraint: the mock engine has no vocabulary to hold an output to it; leave it out",
                    reason="CONSTRAINTS_UNAVAILABLE",
                )
            self._vocabulary = load_vocabulary(self._folder, vocab_size)
        except FailedPrecondition as error:
            self._unavailable = without_frames(error)

    def close(self) -> None:
        """End the threads; what they are at is finished."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def known(self, constraint: Constraint | None) -> str | None:
        """The grammar of a constraint whose verdict is remembered, "" of none at all; None: ask `compile`.

        Raises InvalidRequest for one that was refused, FailedPrecondition where no constraint can be obeyed.
        """
        if constraint is None:
            return ""
        if self._unavailable is not None:
            raise copy(self._unavailable)
        verdict = self._kept.get(constraint)
        if verdict is None:
            return None
        self._kept.move_to_end(constraint)
        self._metrics.remembered()
        return verdict.take()

    async def compile(self, constraint: Constraint | None) -> str:
        """The constraint as a grammar, "" for none.

        Raises InvalidRequest naming the field, and of a schema the place in it; FailedPrecondition where no constraint
        can be obeyed; Overloaded when too many wait to be compiled.
        """
        found = self.known(constraint)
        if found is not None:
            return found
        assert constraint is not None
        running = self._running.get(constraint)
        if running is None:
            if len(self._running) >= MAX_WAITING:
                message = f"{len(self._running)} constraints wait to be compiled, and no more may"
                raise Overloaded(message, reason="CONSTRAINTS_FULL", retry_after_s=1.0)
            running = asyncio.ensure_future(self._compile(constraint))
            self._running[constraint] = running
        return (await asyncio.shield(running)).take()

    async def _compile(self, constraint: Constraint) -> Verdict:
        assert self._vocabulary is not None, "load comes first"
        try:
            loop = asyncio.get_running_loop()
            verdict, took_s = await loop.run_in_executor(self._pool, verdict_on, constraint, self._vocabulary)
        finally:
            del self._running[constraint]
        self._metrics.compiled(constraint.form, took_s, refused=verdict.error is not None)
        self._kept[constraint] = verdict
        self._num_kept_bytes += verdict.num_bytes
        while len(self._kept) > NUM_KEPT or self._num_kept_bytes > MAX_KEPT_BYTES:
            _, dropped = self._kept.popitem(last=False)
            self._num_kept_bytes -= dropped.num_bytes
        return verdict


def verdict_on(constraint: Constraint, vocabulary: Vocabulary) -> tuple[Verdict, float]:
    """Compile and try a constraint, and the seconds that took. Runs in a thread; what takes long releases the lock."""
    started_s = time.perf_counter()
    grammar, error = "", None
    try:
        grammar = grammar_of(constraint, vocabulary.special)
        check(constraint, grammar, vocabulary)
    except TokenwireError as refused:
        grammar, error = "", without_frames(refused)
    except BaseException as panic:  # what the library raises when it fails itself is no Exception
        log.error("a constraint could not be compiled", exc_info=panic)
        grammar, error = "", refusal(constraint, "it could not be compiled")
    return Verdict(grammar, error, num_bytes_of(constraint, grammar, error)), time.perf_counter() - started_s


def num_bytes_of(constraint: Constraint, grammar: str, error: TokenwireError | None) -> int:
    """Memory of what is remembered of a constraint: itself, its grammar, and what is wrong with it."""
    texts = [*constraint.all_texts, grammar]
    if error is not None:
        texts += [error.message, *(text for each in error.violations for text in (each.field, each.description))]
    return sum(map(sys.getsizeof, texts)) + 1024


def without_frames(error: TokenwireError) -> TokenwireError:
    """The same error, which no longer holds what was on the stack where it was raised: matchers, whole schemas."""
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)


def check(constraint: Constraint, grammar: str, vocabulary: Vocabulary) -> None:
    """Raise InvalidRequest for a grammar that is wrong, that nothing satisfies, or that is too costly."""
    started_s = time.thread_time()
    matcher = new_matcher(vocabulary, grammar)
    took_s = time.thread_time() - started_s
    if matcher.is_error():
        if constraint.calls is not None:
            check_calls(constraint.calls, vocabulary)
        raise refusal(constraint, *_explained(constraint, matcher.get_error(), vocabulary))
    if took_s > MAX_COMPILE_S:
        raise refusal(constraint, f"compiling it takes {took_s:.1f} s; at most {MAX_COMPILE_S} s are allowed")
    bits = np.empty(vocabulary.mask_bytes, dtype=np.uint8)
    random_token = random.Random(0)
    until_s = time.thread_time() + MAX_TRY_S
    for number in range(NUM_TRIED_TOKENS):
        started_s = time.thread_time()
        matcher.unsafe_compute_mask_ptr(bits.ctypes.data, bits.nbytes)
        took_s = time.thread_time() - started_s
        if matcher.is_error() and "NoExtension" in matcher.get_error():
            if number == 0:
                raise refusal(constraint, "no text satisfies it, none at least that this model's vocabulary can make")
            return  # a dead end; others may lead further
        if matcher.is_error() or took_s > MAX_TRIED_MASK_S:
            why = reason_of(matcher.get_error()) or f"finding one token took {took_s:.2f} s"
            raise refusal(constraint, f"it is too complex ({why})")
        tokens = np.flatnonzero(np.unpackbits(bits, count=vocabulary.size, bitorder="little"))
        if not len(tokens):
            return
        if time.thread_time() > until_s or not matcher.consume_token(int(random_token.choice(tokens))):
            break
    if matcher.is_error():
        raise refusal(constraint, f"it is too complex ({reason_of(matcher.get_error())})")


def check_calls(calls: Calls, vocabulary: Vocabulary) -> None:
    """Raise InvalidRequest for the first call whose arguments' schema alone is wrong, under its own name."""
    for index, form in enumerate(calls.forms):
        schema = schema_of_call(form)
        message = new_matcher(vocabulary, grammar_of_schema(schema)).get_error()
        if message:
            field = form.field or f"options.constraint.calls.forms[{index}].schema_json"
            place = place_of(schema, message, _refusing(vocabulary)) or "the root of the schema"
            description = f"at {place}: {_in_our_words(message)}"
            raise InvalidRequest.of(field, description, reason="CONSTRAINT_INVALID")


def refusal(constraint: Constraint, what: str, place: str = "") -> InvalidRequest:
    """What is wrong with a constraint, and where in its schema (a JSON pointer)."""
    field = field_of(constraint.form)
    where = place if constraint.form is not ConstraintForm.JSON_SCHEMA or place else "the root of the schema"
    description = f"at {where}: {what}" if where else what
    return InvalidRequest.of(field, description, reason="CONSTRAINT_INVALID")


def _explained(constraint: Constraint, message: str, vocabulary: Vocabulary) -> tuple[str, str]:
    """The library's message in our words, and the place in the schema it comes from."""
    if constraint.calls is not None:
        return reason_of(message), ""
    if constraint.form is ConstraintForm.REGEX:
        found = EXPRESSION_ERROR.search(" ".join(message.split()))
        return (found[1] if found else reason_of(message)), ""
    if constraint.form is not ConstraintForm.JSON_SCHEMA:
        return reason_of(message), ""
    schema = schema_of(constraint)
    return _in_our_words(message), place_of(schema, message, _refusing(vocabulary))


def _in_our_words(message: str) -> str:
    what = reason_of(message)
    if what.startswith("Unimplemented keys"):
        what = f"not supported: {what.partition(':')[2].strip(' []')}"
    elif what.startswith("oneOf constraints"):
        what = "oneOf is supported where no value can satisfy two of its schemas, as of different types; use anyOf"
    return what


def _refusing(vocabulary: Vocabulary) -> Callable[[dict[str, Any]], str]:
    return lambda schema: new_matcher(vocabulary, grammar_of_schema(schema)).get_error()
