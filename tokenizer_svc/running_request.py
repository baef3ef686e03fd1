"""One text request from receipt to the terminal event of its last choice.

Checks it, has its prompt encoded and sent to a model tier (see `passage`), and sees to it that every choice ends
exactly once: by the model tier's terminal event, a stop string, the deadline (its own watchdog: a model tier that hangs
must not hang the request), a cancel or an error. Speaks plain values: text and terminal events go to a `TextSink`.
"""

import asyncio
import logging
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

from tokenizer_svc import tracing
from tokenizer_svc.choice import Choice
from tokenizer_svc.encoder import EncodedPrompt
from tokenizer_svc.passage import Passage, lost_with
from tokenizer_svc.prompt import fit_prompt
from tokenizer_svc.text_request import TextRequest, begin_text, constraint_of, encode_prompt, with_adapter
from tokenizer_svc.tier import Tier
from tokenwire.errors import Internal, TokenwireError
from tokenwire.logprobs import SequenceLogprobs
from tokenwire.logs import fields
from tokenwire.parsed import Parsed
from tokenwire.requests import (
    CancelReason,
    FinishReason,
    Terminal,
    TokenizerTimings,
    Usage,
)
from tokenwire.routing.outcomes import ENDED_WELL
from tokenwire.telemetry.tracing import Attributes

log = logging.getLogger(__name__)

SEEDS = random.Random()
"""Of requests that bring none."""
NO_PROMPT = EncodedPrompt("", [])


class TextSink(Protocol):
    """Where text and terminal events go, by the session's handles."""

    def add_text(
        self,
        handle: int,
        text: str,
        num_tokens: int,
        token_ids: Sequence[int] = (),
        logprobs: SequenceLogprobs | None = None,
        parsed: Parsed | None = None,
    ) -> None:
        """New text of a choice, and what was split from it."""

    def finish(self, handle: int, terminal: Terminal) -> None:
        """A choice has ended."""


class RunningRequest:
    """Owns its task, its timer and its way down; all are given up when the last choice ends."""

    def __init__(
        self, tier: Tier, request: TextRequest, handle: int, sink: TextSink, on_done: Callable[["RunningRequest"], None]
    ) -> None:
        """Choice i goes by `handle + i`. `on_done` is called once, after the last terminal event."""
        self.request = request
        self.choices = [Choice(self, i, handle + i) for i in range(request.options.num_choices)]
        self._sink = sink
        self._tier = tier
        self._on_done = on_done
        self._num_open = len(self.choices)
        self._prompt = NO_PROMPT
        self._passage: Passage | None = None
        """None until the prompt is encoded."""
        self._first_frame_s: float | None = None
        """Seconds from the first Submit until the first tokens, or log-probabilities of the prompt."""
        self._ends: Counter[str] = Counter()
        self._num_output_tokens = 0
        self._trace: tracing.RequestTrace | None = None
        if tier.tracer is not None:
            self._trace, context = tracing.begin(tier.tracer, request.context)
            self.request = replace(request, context=context)
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Go. Raises Overloaded when the tier runs enough requests already."""
        try:
            self._tier.admit(len(self.choices))
        except TokenwireError:
            self._let_go()
            raise
        loop = asyncio.get_running_loop()
        remaining_s = self.request.context.remaining_s()
        if remaining_s is not None:
            self._timer = loop.call_later(remaining_s, self._expire)
        self._task = loop.create_task(self._prepare())

    def cancel(self, handle: int, reason: CancelReason) -> None:
        """The client takes one choice back. One that no model tier has ends at once."""
        choice = self.choices[handle - self.choices[0].handle]
        if choice.part is None or choice.part.placement is None:
            self.end_open(choice, FinishReason.CANCELLED)
        elif choice.text is not None and choice.text.stop_string is None:
            choice.cancelled = reason
            choice.part.cancel(choice.index, reason)

    def close(self) -> None:
        """The session is gone: nobody listens any more."""
        for choice in self.choices:
            if not choice.ended:
                choice.drop_below(CancelReason.CLIENT)
                self.end_open(choice, FinishReason.CANCELLED)

    def on_text(
        self,
        choice: Choice,
        text: str,
        token_ids: Sequence[int],
        logprobs: SequenceLogprobs | None = None,
        parsed: Parsed | None = None,
    ) -> None:
        """New text of a choice, the tokens behind it, and what came along."""
        if self._first_frame_s is None and self._passage is not None and self._passage.first_submit_s is not None:
            self._first_frame_s = time.monotonic() - self._passage.first_submit_s
        shown = token_ids if self.request.options.return_token_ids else ()
        self._sink.add_text(choice.handle, text, len(token_ids), shown, logprobs, parsed)

    def take_over(self, choice: Choice, error: TokenwireError, *, lost: bool) -> bool:
        """A model tier gave a choice up. Returns whether that is dealt with: it goes on elsewhere, or has ended."""
        return self._passage is not None and self._passage.take_over(choice, error, lost=lost)

    def end_lost(self, choice: Choice, why: TokenwireError) -> None:
        """End a choice whose model tier was lost, with no other to go to."""
        replica = choice.part.replica if choice.part is not None else None
        self.end_open(choice, FinishReason.ERROR, lost_with(replica, why))

    def fail_choice(self, choice: Choice, error: TokenwireError) -> None:
        """End a choice whose text cannot be asked any more."""
        choice.drop_below(CancelReason.CLIENT)
        usage = Usage(len(self._prompt.token_ids), 0, choice.count())
        self.end_choice(choice, "", Terminal(FinishReason.ERROR, usage, error=error))

    def end_open(self, choice: Choice, reason: FinishReason, error: TokenwireError | None = None) -> None:
        """End a choice without a terminal event from below."""
        if choice.ended:
            return
        if choice.text is not None:
            self.end_choice(choice, *choice.end_text(choice.text, reason, error))
        else:
            self.end_choice(choice, "", Terminal(reason, Usage(len(self._prompt.token_ids)), error=error))

    def end_choice(self, choice: Choice, text: str, terminal: Terminal) -> None:
        """The one end of a choice."""
        choice.end()
        parsed = choice.text.take_parsed() if choice.text is not None else None
        if text or parsed is not None:
            self._sink.add_text(choice.handle, text, 0, parsed=parsed)
        self._sink.finish(choice.handle, replace(terminal, tokenizer_timings=self._timings()))
        metrics = self._tier.metrics
        metrics.requests_of(terminal.reason.value).inc()
        metrics.output_tokens.inc(terminal.usage.completion_tokens)
        if choice.text is not None and choice.text.num_holds:
            metrics.stop_holds.inc(choice.text.num_holds)
        self._num_output_tokens += terminal.usage.completion_tokens
        self._ends[terminal.reason.value] += 1
        if terminal.reason in ENDED_WELL:
            self._tier.retry_budget.on_success()
        if terminal.error is not None:
            terminal.error.with_traceback(None)  # it waits to be sent, and its frames hold this request
            metrics.errors.labels(terminal.error.reason).inc()
        if self._passage is not None:
            self._passage.on_end(choice)
        self._num_open -= 1
        if self._num_open == 0:
            self._leave(terminal)

    async def _prepare(self) -> None:
        """Check, encode, have it sent down."""
        try:
            self.request = with_adapter(self.request, self._tier)
            self._prompt = await encode_prompt(self.request, self._tier)
            self._make_choices()
            self._tier.metrics.prompt_tokens.inc(len(self._prompt.token_ids))
            self._passage = Passage(
                self._tier, self.request, self._prompt.token_ids, self.choices, self.end_open, self._trace
            )
            self._passage.place()
        except TokenwireError as error:
            self._fail(error)
        except Exception as error:
            log.error("a request failed", exc_info=error, extra=fields(request_id=self.request.context.request_id))
            self._fail(Internal(f"the request could not be prepared: {type(error).__name__}"))

    def _make_choices(self) -> None:
        """Fit the prompt into the longest context there is, begin every choice's text, and draw the seed."""
        options = self.request.options
        token_ids = fit_prompt(
            self._prompt.token_ids,
            max_tokens=options.stop.max_tokens,
            truncation=self.request.truncation,
            max_context_tokens=self._tier.longest_context_tokens,
            begin_id=self._tier.tokenizer.begin_id,
        )
        if token_ids is not self._prompt.token_ids:
            self._prompt = replace(self._prompt, token_ids=token_ids)
        for choice in self.choices:
            choice.text = begin_text(self.request, self._tier, self._prompt)
            choice.direct = None if options.return_token_ids else self._sink.add_text
        if options.sampling.seed is None:
            sampling = replace(options.sampling, seed=SEEDS.getrandbits(64))
            self.request = replace(self.request, options=replace(options, sampling=sampling))
        constraint = constraint_of(self.request, self._tier, self._prompt)
        if constraint is not options.constraint:
            self.request = replace(self.request, options=replace(self.request.options, constraint=constraint))

    def _fail(self, error: TokenwireError) -> None:
        for choice in self.choices:
            self.end_open(choice, FinishReason.ERROR, error)

    def _expire(self) -> None:
        """The watchdog: the time is up and the model tier has not said so, or none has it."""
        for choice in self.choices:
            if not choice.ended:
                choice.drop_below(CancelReason.DEADLINE)
                self.end_open(choice, FinishReason.DEADLINE)

    def _timings(self) -> TokenizerTimings:
        return TokenizerTimings(
            queue_s=self._prompt.queue_s,
            tokenize_s=self._prompt.encode_s,
            first_frame_s=self._first_frame_s or 0.0,
            total_s=time.monotonic() - self.request.context.arrival_s,
        )

    def _leave(self, last: Terminal) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._task is not None and self._task is not asyncio.current_task():
            self._task.cancel()
        if self._first_frame_s is not None:
            self._tier.metrics.first_frame.observe(self._first_frame_s)
        self._tier.metrics.duration.observe(time.monotonic() - self.request.context.arrival_s)
        self._tier.leave(len(self.choices))
        if self._trace is not None:
            self._end_trace(self._trace, last)
        self._log_end(last)
        self._on_done(self)
        self._let_go()

    def _end_trace(self, trace: tracing.RequestTrace, last: Terminal) -> None:
        attributes: Attributes = {
            "tokenwire.request_id": self.request.context.request_id,
            "tokenwire.choices": len(self.choices),
            "tokenwire.finish_reason": ",".join(self._ends),
            "tokenwire.resumes": self._passage.num_resumes if self._passage is not None else 0,
            "gen_ai.usage.input_tokens": len(self._prompt.token_ids),
            "gen_ai.usage.output_tokens": self._num_output_tokens,
        }
        error = last.error.noted if last.error is not None else ""
        trace.end(self.request.context.arrival_s, self._timings(), attributes, error)

    def _let_go(self) -> None:
        """Cut the circles of references: a prompt can be large, and garbage is looked for seldom."""
        for choice in self.choices:
            choice.part = choice.text = None
        self.choices, self._passage, self._prompt, self._task = [], None, NO_PROMPT, None

    def _log_end(self, last: Terminal) -> None:
        if not log.isEnabledFor(logging.INFO):
            return
        timings, passage = self._timings(), self._passage
        log.info(
            "request finished",
            extra=fields(
                request_id=self.request.context.request_id,
                reason=",".join(self._ends),
                choices=len(self.choices) if len(self.choices) > 1 else None,
                prompt_tokens=len(self._prompt.token_ids),
                cached_tokens=last.usage.cached_tokens or None,
                output_tokens=self._num_output_tokens,
                target=passage.target if passage is not None else None,
                resumes=(passage.num_resumes or None) if passage is not None else None,
                tokenize_ms=timings.tokenize_s * 1e3,
                first_frame_ms=timings.first_frame_s * 1e3,
                total_ms=timings.total_s * 1e3,
                error=last.error.noted if last.error is not None else None,
            ),
        )
