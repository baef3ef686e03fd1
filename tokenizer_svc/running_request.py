"""One text request from receipt to the terminal event of its last choice.

Checks it, has its prompt encoded, submits it to a model tier (once more to another when the first is lost before its
first token), turns tokens into text, and sees to it that every choice ends exactly once: by the model tier's terminal
event, a stop string, the deadline (its own watchdog: a model tier that hangs must not hang the request), a cancel or
an error. Speaks plain values: text and terminal events go to a `TextSink`.
"""

import asyncio
import logging
import secrets
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

from tokenizer_svc.encoder import EncodedPrompt
from tokenizer_svc.generation import ChoiceText
from tokenizer_svc.prompt import fit_prompt
from tokenizer_svc.router import Placement, Replica, TokenSubmission
from tokenizer_svc.text_request import TextRequest, begin_text, encode_prompt
from tokenizer_svc.tier import Tier
from tokenwire.errors import Internal, TokenwireError, Unavailable
from tokenwire.logprobs import SequenceLogprobs
from tokenwire.logs import fields
from tokenwire.requests import (
    CancelReason,
    FinishReason,
    Terminal,
    TokenizerTimings,
    Usage,
)

log = logging.getLogger(__name__)

RETRY_AFTER_S = 1.0
DEADLINE_MARGIN_S = 0.02
"""The model tier is given this much less time, so that its DEADLINE, with exact counts, comes before ours."""


class TextSink(Protocol):
    """Where text and terminal events go, by the session's handles."""

    def add_text(
        self,
        handle: int,
        text: str,
        num_tokens: int,
        token_ids: Sequence[int] = (),
        logprobs: SequenceLogprobs | None = None,
    ) -> None:
        """New text of a choice."""

    def finish(self, handle: int, terminal: Terminal) -> None:
        """A choice has ended."""


class Choice:
    """One choice: what a model tier says of it, made into text."""

    __slots__ = ("ended", "handle", "index", "request", "text")

    def __init__(self, request: "RunningRequest", index: int, handle: int, text: ChoiceText | None = None) -> None:
        self.request = request
        self.index = index
        self.handle = handle
        self.text = text
        """None until the prompt is encoded."""
        self.ended = False
        """Nothing more is wanted of it: its terminal event was sent, or another model tier was asked instead."""

    def on_tokens(self, token_ids: Sequence[int], logprobs: SequenceLogprobs | None = None) -> None:
        """New tokens from the model tier."""
        text, request = self.text, self.request
        if self.ended or text is None or text.stop_string is not None:
            return
        if request.first_frame_s is None:
            request.first_frame_s = time.monotonic() - request.submitted_s
        delta = text.push(token_ids, logprobs)
        shown = token_ids[: delta.num_tokens] if request.request.options.return_token_ids else ()
        request.sink.add_text(self.handle, delta.text, delta.num_tokens, shown, delta.logprobs)
        if delta.stopped:
            request.cancel_below(self, CancelReason.STOP_STRING)

    def on_finish(self, terminal: Terminal) -> None:
        """The model tier's terminal event."""
        if self.ended or (isinstance(terminal.error, Unavailable) and self.request.try_again()):
            return
        if self.text is not None:
            self.request.end_choice(self, *self.text.finish(terminal))

    def on_lost(self, error: TokenwireError) -> None:
        """The model tier was lost."""
        if not self.ended and not self.request.try_again():
            self.request.end_open(self, FinishReason.ERROR, self.request.lost(error))

    def on_failed(self, error: TokenwireError) -> None:
        """A bug of ours: the text stands as it was sent."""
        if not self.ended:
            self.request.fail_choice(self, error)


class RunningRequest:
    """Owns its task, its timer and its place on a model tier; all are given up when the last choice ends."""

    def __init__(
        self, tier: Tier, request: TextRequest, handle: int, sink: TextSink, on_done: Callable[["RunningRequest"], None]
    ) -> None:
        """Choice i goes by `handle + i`. `on_done` is called once, after the last terminal event."""
        self.request = request
        self.sink = sink
        self.choices = [Choice(self, i, handle + i) for i in range(request.options.num_choices)]
        self.submitted_s = 0.0
        self.first_frame_s: float | None = None
        """Seconds from Submit until the first tokens, or log-probabilities of the prompt."""
        self._tier = tier
        self._on_done = on_done
        self._num_open = len(self.choices)
        self._prompt = EncodedPrompt("", [])
        self._placement: Placement | None = None
        self._replica: Replica | None = None
        self._tried_again = False
        self._ends: Counter[str] = Counter()
        self._num_output_tokens = 0
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Go. Raises Overloaded when the tier runs enough requests already."""
        self._tier.admit(len(self.choices))
        loop = asyncio.get_running_loop()
        remaining_s = self.request.context.remaining_s()
        if remaining_s is not None:
            self._timer = loop.call_later(remaining_s, self._expire)
        self._task = loop.create_task(self._prepare())

    def cancel(self, handle: int, reason: CancelReason) -> None:
        """The client takes one choice back."""
        choice = self.choices[handle - self.choices[0].handle]
        if self._placement is None:
            self.end_open(choice, FinishReason.CANCELLED)
        elif choice.text is not None and choice.text.stop_string is None:
            self.cancel_below(choice, reason)

    def close(self) -> None:
        """The session is gone: nobody listens any more."""
        for choice in self.choices:
            if not choice.ended:
                self._drop_below(choice, CancelReason.CLIENT)
                self.end_open(choice, FinishReason.CANCELLED)

    def cancel_below(self, choice: Choice, reason: CancelReason) -> None:
        """Ask the model tier to end a choice; its terminal event is awaited."""
        if self._placement is not None:
            self._placement.cancel(choice.index, reason)

    def try_again(self) -> bool:
        """The model tier was lost: whether another one takes the request. Once, and only before its first token."""
        if self._tried_again or self.first_frame_s is not None or self._num_open < len(self.choices):
            return False
        try:
            replica = self._tier.router.pick(exclude=self._replica)
        except Unavailable:
            return False
        self._tried_again = True
        for choice in self.choices:
            self._drop_below(choice, CancelReason.CLIENT)
            choice.ended = True  # what the old place still says of it is nothing to us
        self.choices = [Choice(self, old.index, old.handle, old.text) for old in self.choices]
        self._tier.metrics.retries.inc()
        request_id = self.request.context.request_id
        log.warning("request goes to another model tier", extra=fields(request_id=request_id, target=replica.target))
        self._submit(replica)
        return True

    def lost(self, why: TokenwireError) -> TokenwireError:
        """The error of a request whose model tier was lost after its first token, or with no other to go to."""
        target = self._replica.target if self._replica is not None else "below"
        message = f"the model tier at {target} was lost: {why}"
        return Unavailable(message, reason="MODEL_TIER_LOST", retry_after_s=RETRY_AFTER_S)

    def fail_choice(self, choice: Choice, error: TokenwireError) -> None:
        """End a choice whose text cannot be asked any more."""
        self._drop_below(choice, CancelReason.CLIENT)
        num_tokens = choice.text.num_tokens if choice.text is not None else 0
        usage = Usage(len(self._prompt.token_ids), 0, num_tokens)
        self.end_choice(choice, "", Terminal(FinishReason.ERROR, usage, error=error))

    def end_open(self, choice: Choice, reason: FinishReason, error: TokenwireError | None = None) -> None:
        """End a choice without a terminal event from below."""
        if choice.ended:
            return
        if choice.text is not None:
            self.end_choice(choice, *choice.text.end(reason, error))
        else:
            self.end_choice(choice, "", Terminal(reason, Usage(len(self._prompt.token_ids)), error=error))

    def end_choice(self, choice: Choice, text: str, terminal: Terminal) -> None:
        """The one end of a choice."""
        choice.ended = True
        if text:
            self.sink.add_text(choice.handle, text, 0)
        self.sink.finish(choice.handle, replace(terminal, tokenizer_timings=self._timings()))
        metrics = self._tier.metrics
        metrics.requests.labels(terminal.reason.value).inc()
        metrics.output_tokens.inc(terminal.usage.completion_tokens)
        self._num_output_tokens += terminal.usage.completion_tokens
        self._ends[terminal.reason.value] += 1
        if terminal.error is not None:
            metrics.errors.labels(terminal.error.reason).inc()
        self._num_open -= 1
        if self._num_open == 0:
            self._leave(terminal)

    async def _prepare(self) -> None:
        """Check, encode, submit."""
        try:
            self._prompt = await encode_prompt(self.request, self._tier)
            replica = self._tier.router.pick()
            self._make_choices(replica)
            self._tier.metrics.prompt_tokens.inc(len(self._prompt.token_ids))
            self._submit(replica)
        except TokenwireError as error:
            self._fail(error)
        except Exception as error:
            log.error("a request failed", exc_info=error, extra=fields(request_id=self.request.context.request_id))
            self._fail(Internal(f"the request could not be prepared: {type(error).__name__}"))

    def _make_choices(self, replica: Replica) -> None:
        """Fit the prompt into the replica's context and begin every choice's text."""
        options = self.request.options
        token_ids = fit_prompt(
            self._prompt.token_ids,
            max_tokens=options.stop.max_tokens,
            truncation=self.request.truncation,
            max_context_tokens=replica.max_context_tokens,
            begin_id=self._tier.tokenizer.begin_id,
        )
        self._prompt = replace(self._prompt, token_ids=token_ids)
        for choice in self.choices:
            choice.text = begin_text(options, self._tier.tokenizer, token_ids)
        if options.sampling.seed is None:
            sampling = replace(options.sampling, seed=secrets.randbits(64))
            self.request = replace(self.request, options=replace(options, sampling=sampling))

    def _submit(self, replica: Replica) -> None:
        context, options = self.request.context, self.request.options
        if context.deadline_s is not None:
            remaining_s = context.remaining_s() or 0.0
            context = replace(context, deadline_s=context.deadline_s - min(DEADLINE_MARGIN_S, remaining_s / 2))
        submission = TokenSubmission(
            context=context,
            token_ids=self._prompt.token_ids,
            options=replace(options, stop_strings=(), include_stop_string=False, return_token_ids=False),
            cache_salt=self.request.cache_salt,
            vocabulary=self._tier.tokenizer.fingerprint,
        )
        self.submitted_s = time.monotonic()
        self._replica = replica
        self._placement = replica.submit(submission, self.choices)
        for choice in self.choices:
            if choice.ended:
                self._drop_below(choice, CancelReason.CLIENT)

    def _fail(self, error: TokenwireError) -> None:
        for choice in self.choices:
            self.end_open(choice, FinishReason.ERROR, error)

    def _expire(self) -> None:
        """The watchdog: the time is up and the model tier has not said so."""
        for choice in self.choices:
            if not choice.ended:
                self._drop_below(choice, CancelReason.DEADLINE)
                self.end_open(choice, FinishReason.DEADLINE)

    def _drop_below(self, choice: Choice, reason: CancelReason) -> None:
        if self._placement is not None:
            self._placement.drop(choice.index, reason)

    def _timings(self) -> TokenizerTimings:
        return TokenizerTimings(
            queue_s=self._prompt.queue_s,
            tokenize_s=self._prompt.encode_s,
            first_frame_s=self.first_frame_s or 0.0,
            total_s=time.monotonic() - self.request.context.arrival_s,
        )

    def _leave(self, last: Terminal) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._task is not None and self._task is not asyncio.current_task():
            self._task.cancel()
        if self.first_frame_s is not None:
            self._tier.metrics.first_frame.observe(self.first_frame_s)
        self._tier.leave(len(self.choices))
        self._log_end(last)
        self._on_done(self)

    def _log_end(self, last: Terminal) -> None:
        timings = self._timings()
        log.info(
            "request finished",
            extra=fields(
                request_id=self.request.context.request_id,
                reason=",".join(self._ends),
                choices=len(self.choices) if len(self.choices) > 1 else None,
                prompt_tokens=len(self._prompt.token_ids),
                cached_tokens=last.usage.cached_tokens or None,
                output_tokens=self._num_output_tokens,
                target=self._replica.target if self._replica is not None else None,
                tokenize_ms=timings.tokenize_s * 1e3,
                first_frame_ms=timings.first_frame_s * 1e3,
                total_ms=timings.total_s * 1e3,
                error=last.error.message if last.error is not None else None,
            ),
        )
