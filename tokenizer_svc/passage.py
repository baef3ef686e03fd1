"""A request's way down: which of its choices go to which model tier, and where they go on when one is lost.

Makes the submissions: at first the prompt for all choices, later the prompt and the tokens so far for each. Does not
know text, nor how choices end; `ends` is told what cannot go on.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from tokenizer_svc.choice import Choice
from tokenizer_svc.part import Part, runs_of
from tokenizer_svc.router import Replica, RoutingQuery, TokenSubmission
from tokenizer_svc.text_request import TextRequest
from tokenizer_svc.tier import Tier
from tokenizer_svc.tracing import RequestTrace
from tokenwire.errors import Overloaded, TokenwireError, Unavailable
from tokenwire.logs import fields
from tokenwire.requests import CancelReason, FinishReason, RequestContext

log = logging.getLogger(__name__)

RETRY_AFTER_S = 1.0
DEADLINE_MARGIN_S = 0.02
"""The model tier is given this much less time, so that its DEADLINE, with exact counts, comes before ours."""
QUEUE_FULL = "QUEUE_FULL"
"""Why a model tier refuses what several of its sessions had credit for together."""
MAX_REFUSALS = 8
"""How often that may happen to one choice."""


class Passage:
    """One request's. Lives on the event loop, from the first `place` until every choice has ended."""

    def __init__(
        self,
        tier: Tier,
        request: TextRequest,
        prompt_ids: list[int],
        choices: Sequence[Choice],
        end: Callable[[Choice, FinishReason, TokenwireError | None], None],
        trace: RequestTrace | None = None,
    ) -> None:
        """`request` has its seed. `end` ends a choice that has not ended. `trace`: None: it is not traced."""
        self.first_submit_s: float | None = None
        """Monotonic clock; None: nothing was sent down yet."""
        self.target: str | None = None
        """Where a part was sent last."""
        self.num_resumes = 0
        """How often a part went on after a loss."""
        self._tier = tier
        self._request = request
        self._prompt_ids = prompt_ids
        self._choices = choices
        self._end = end
        self._trace = trace
        self._max_tokens = request.options.stop.max_tokens
        """Most output tokens; where the client left that open, known once a model tier is."""
        self._given_up: dict[int, tuple[TokenwireError, Replica | None]] = {}
        """By choice: why a model tier gave it up, and which; until it is placed anew."""

    def place(self) -> None:
        """Have all choices sent down. Raises what `Dispatcher.place` raises."""
        self._tier.dispatcher.place(self._part(range(len(self._choices))))

    def take_over(self, choice: Choice, error: TokenwireError, *, lost: bool) -> bool:
        """A model tier gave a choice up. Returns whether that is dealt with: it goes on elsewhere, or has ended.

        Choices that are given up in the same turn of the event loop are placed together.
        """
        refused = isinstance(error, Overloaded) and error.reason == QUEUE_FULL
        if not (lost or refused or isinstance(error, Unavailable)):
            return False
        if choice.text is None or choice.text.stop_string is not None:
            return False
        if choice.cancelled is not None:
            self._end(choice, FinishReason.CANCELLED, None)
            return True
        if self._max_tokens is not None and len(choice.token_ids) >= self._max_tokens:
            self._end(choice, FinishReason.LENGTH, None)
            return True
        replica = choice.part.replica if choice.part is not None else None
        if not self._may_go_on(choice, replica, error, refused=refused):
            return False
        choice.part = None
        if self._trace is not None:
            self._trace.given_up(choice.index)
        if not self._given_up:
            asyncio.get_running_loop().call_soon(self._go_on)
        self._given_up[choice.index] = (error, replica)
        return True

    def on_end(self, choice: Choice) -> None:
        """A choice has ended: what is held for it alone is held no more."""
        part = choice.part
        if part is not None and part.placement is None and all(each.ended for each in self._choices_of(part)):
            self._tier.dispatcher.forget(part)

    def _may_go_on(self, choice: Choice, replica: Replica | None, error: TokenwireError, *, refused: bool) -> bool:
        """Whether one more try is due, which is then counted."""
        if refused:
            if replica is None or not replica.leases_room or choice.num_refusals >= MAX_REFUSALS:
                return False
            choice.num_refusals += 1
            return True
        if choice.num_resumes >= self._tier.max_resumes or self._tier.dispatcher.closed:
            return False
        if not choice.begun and not self._tier.retry_budget.take(error):
            return False
        choice.num_resumes += 1
        return True

    def _go_on(self) -> None:
        """Place anew what was given up: what has begun choice by choice, the rest in runs."""
        given_up, self._given_up = self._given_up, {}
        open_ones = sorted(index for index in given_up if not self._choices[index].ended)
        fresh = [index for index in open_ones if not self._choices[index].begun]
        begun = [range(index, index + 1) for index in open_ones if self._choices[index].begun]
        for choices in [*runs_of(fresh), *begun]:
            error, replica = given_up[choices.start]
            if isinstance(error, Overloaded):
                part = self._part(choices, loss=error)
            else:
                part = self._part(choices, avoided=replica, loss=lost_with(replica, error))
            try:
                self._tier.dispatcher.place(part)
            except TokenwireError as refusal:
                self._turn_away(part, refusal)

    def _part(self, choices: range, *, avoided: Replica | None = None, loss: TokenwireError | None = None) -> Part:
        """Choices that go down together; where one has output already, it goes alone."""
        request, prompt_ids, output = self._request, self._prompt_ids, self._choices[choices.start].token_ids
        token_ids = prompt_ids + output if output else prompt_ids
        part = Part(
            request.context,
            RoutingQuery(token_ids, request.cache_salt, request.context.tenant, request.options.adapter),
            choices,
            num_generated_tokens=len(output),
            num_wanted_tokens=len(prompt_ids) + (self._max_tokens or 1),
            go=self._submit,
            turn_away=self._turn_away,
            avoided=avoided,
            loss=loss,
        )
        for choice in self._choices_of(part):
            choice.part = part
        return part

    def _submit(self, part: Part, replica: Replica) -> None:
        options, first, num_prompt = self._request.options, self._choices[part.first], len(self._prompt_ids)
        if self._max_tokens is None and replica.max_context_tokens:
            self._max_tokens = replica.max_context_tokens - num_prompt
        wants_prompt = not first.token_ids and first.num_prompt_logprobs < num_prompt - 1
        context = context_below(self._request.context)
        if self._trace is not None:
            context = self._trace.goes_down(context, replica.target, range(part.first, part.first + part.num_requests))
        submission = TokenSubmission(
            context=context,
            token_ids=part.query.token_ids,
            options=replace(
                options,
                stop=replace(options.stop, max_tokens=self._max_tokens) if part.begun else options.stop,
                stop_strings=(),
                include_stop_string=False,
                return_token_ids=False,
                num_choices=part.num_requests,
                prompt_logprobs=options.prompt_logprobs if wants_prompt else None,
            ),
            cache_salt=self._request.cache_salt,
            vocabulary=self._tier.tokenizer.fingerprint,
            num_generated_tokens=part.num_generated_tokens,
            first_choice=part.first,
        )
        if self.first_submit_s is None:
            self.first_submit_s = time.monotonic()
        self.target, part.replica = replica.target, replica
        choices = self._choices_of(part)
        for choice in choices:
            choice.goes_down(prompt_logprobs=wants_prompt)
        part.placement = replica.submit(submission, choices)
        for choice in choices:
            if choice.ended:
                part.drop(choice.index, CancelReason.CLIENT)
        if part.loss is not None:
            self._on_resumed(part, replica, part.loss)

    def _on_resumed(self, part: Part, replica: Replica, loss: TokenwireError) -> None:
        """Count and say that a part was sent down once more."""
        metrics = self._tier.metrics
        if isinstance(loss, Overloaded):
            metrics.bounced.inc()
            return
        (metrics.resumes if part.num_generated_tokens else metrics.retries).inc()
        self.num_resumes += 1
        log.warning(
            "request goes on where it was" if replica is part.avoided else "request goes on at another model tier",
            extra=fields(
                request_id=self._request.context.request_id,
                target=replica.target,
                num_generated_tokens=part.num_generated_tokens,
                error=loss.message,
            ),
        )

    def _turn_away(self, part: Part, error: TokenwireError) -> None:
        """A part is not sent down any more: its choices end, where there was a loss with that as the reason."""
        adapter = self._request.options.adapter
        if adapter and adapter not in self._tier.adapters:
            error = self._tier.adapter_missing(adapter)  # unloaded meanwhile
        for choice in self._choices_of(part):
            if not choice.ended:
                self._end(choice, FinishReason.ERROR, part.loss or error)

    def _choices_of(self, part: Part) -> Sequence[Choice]:
        return self._choices[part.first : part.first + part.num_requests]


def context_below(context: RequestContext) -> RequestContext:
    """Who asks, with a little less time than is left."""
    if context.deadline_s is None:
        return context
    remaining_s = context.remaining_s() or 0.0
    return replace(context, deadline_s=context.deadline_s - min(DEADLINE_MARGIN_S, remaining_s / 2))


def lost_with(replica: Replica | None, why: TokenwireError) -> Unavailable:
    """The error of a choice whose model tier was lost, with no other to go to."""
    target = replica.target if replica is not None else "below"
    message = f"the model tier at {target} was lost: {why}"
    return Unavailable(message, reason="MODEL_TIER_LOST", retry_after_s=RETRY_AFTER_S)
