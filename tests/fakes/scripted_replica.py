"""Model tiers in this process, without a wire: they make the tokens of a script from wherever they are told to.

And the tokenizer tier's requests over them. Nothing happens by itself: a test says how much each choice makes, when a
replica is lost, and when it has room.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from prometheus_client import CollectorRegistry

from tests.fakes.logprobs import logprobs_of
from tokenizer_svc.cache_view import CacheView
from tokenizer_svc.call_thread import CallThread
from tokenizer_svc.dispatcher import Dispatcher
from tokenizer_svc.encoder import Encoder
from tokenizer_svc.metrics import TokenizerMetrics
from tokenizer_svc.router import Router, TokenReceiver, TokenSubmission
from tokenizer_svc.running_request import RunningRequest
from tokenizer_svc.text_request import TextRequest
from tokenizer_svc.tier import Tier
from tokenizer_svc.tokenizer import Tokenizer
from tokenwire.errors import Unavailable
from tokenwire.logprobs import SequenceLogprobs
from tokenwire.parsed import Parsed
from tokenwire.requests import CancelReason, FinishReason, Terminal, TokenLogprob, Usage
from tokenwire.routing.breaker import Breaker
from tokenwire.routing.retry_budget import RetryBudget

Script = Callable[[int], Sequence[int]]
"""The whole output of a choice, by its number."""


@dataclass(eq=False)
class Submitted:
    """One Submit, its receivers, and how far each choice of it is."""

    replica: "ScriptedReplica"
    submission: TokenSubmission
    receivers: dict[int, TokenReceiver]
    """The open ones, by choice of the request."""
    made: dict[int, int]
    """Output tokens made, those of before included."""
    prompt_sent: set[int] = field(default_factory=set)

    @property
    def prompt(self) -> Sequence[int]:
        ids = self.submission.token_ids
        return ids[: len(ids) - self.submission.num_generated_tokens]

    def say_prompt(self, choice: int, end: int | None = None) -> None:
        """Log-probabilities of the prompt's tokens from the second to `end`."""
        num_top = self.submission.options.prompt_logprobs
        assert num_top is not None
        self.receivers[choice].on_tokens((), SequenceLogprobs(prompt=logprobs_of(self.prompt[1:end], num_top)))
        self.prompt_sent.add(choice)

    def say(self, choice: int, num_tokens: int) -> None:
        """The next tokens of the script, as one frame; then the end where the script or max_tokens says so."""
        options, receiver = self.submission.options, self.receivers.get(choice)
        if receiver is None:
            return
        if options.prompt_logprobs is not None and choice not in self.prompt_sent:
            self.say_prompt(choice)
        script, begin = self.replica.script(choice), self.made[choice]
        limit = min(len(script), options.stop.max_tokens or len(script))
        ids = list(script[begin : min(begin + num_tokens, limit)])
        self.made[choice] += len(ids)
        if ids:
            logprobs = SequenceLogprobs(logprobs_of(ids, options.logprobs)) if options.logprobs is not None else None
            if len(ids) == 1 and logprobs is None:
                receiver.on_token(ids[0])
            else:
                receiver.on_tokens(ids, logprobs)
        if self.made[choice] == limit and num_tokens > len(ids):
            self.finish(choice, FinishReason.LENGTH)

    def finish(self, choice: int, reason: FinishReason) -> None:
        """The terminal event."""
        receiver = self.receivers.pop(choice, None)
        if receiver is not None:
            receiver.on_finish(Terminal(reason, Usage(len(self.prompt), 1, self.made[choice])))

    def finish_all(self) -> None:
        for choice in list(self.receivers):
            self.say(choice, 10**6)

    def cancel(self, choice: int, reason: CancelReason) -> None:
        """As `Placement`; the number counts from the first choice of this Submit."""
        self.finish(self.submission.first_choice + choice, FinishReason.CANCELLED)

    def drop(self, choice: int, reason: CancelReason) -> None:
        """As `Placement`."""
        self.receivers.pop(self.submission.first_choice + choice, None)


class ScriptedReplica:
    """A `Replica`."""

    def __init__(self, target: str, script: Script, *, max_context_tokens: int = 10_000) -> None:
        self.target = target
        self.script = script
        self.max_context_tokens = max_context_tokens
        self.vocab_size = 0
        self.generates = True
        self.embedding_size = 0
        self.breaker = Breaker()
        self.cache = CacheView()
        self.adapters: frozenset[str] = frozenset()
        self.ready = True
        self.load = 0.0
        self.leases_room = True
        self.room = 10**6
        self.submitted: list[Submitted] = []

    def has_room(self, num_requests: int, num_tokens: int) -> bool:
        return num_requests <= self.room

    def report_demand(self) -> None:
        pass

    def problem(self) -> str:
        return "lost"

    def submit(self, submission: TokenSubmission, receivers: Sequence[TokenReceiver]) -> Submitted:
        assert self.ready and len(receivers) == submission.options.num_choices
        self.room -= len(receivers)
        first, generated = submission.first_choice, submission.num_generated_tokens
        choices = range(first, first + len(receivers))
        made = dict.fromkeys(choices, generated)
        submitted = Submitted(self, submission, dict(zip(choices, receivers, strict=True)), made)
        output = list(submission.token_ids[len(submission.token_ids) - generated :])
        assert output == list(self.script(first)[:generated]), "a gap, or a repeat"
        self.submitted.append(submitted)
        return submitted

    def embed(self, submission: Any) -> Any:
        raise AssertionError("the script is one of text")

    def lose(self) -> None:
        """The connection breaks under everything that is open."""
        self.ready = False
        for submitted in self.submitted:
            receivers, submitted.receivers = submitted.receivers, {}
            for receiver in receivers.values():
                receiver.on_lost(Unavailable("gone"))

    def finish_all(self) -> None:
        for submitted in list(self.submitted):
            submitted.finish_all()


@dataclass(slots=True)
class Received:
    """What a `TextSink` was given of one choice."""

    text: str = ""
    num_tokens: int = 0
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)
    parsed: list[Parsed] = field(default_factory=list)
    terminal: Terminal | None = None

    @property
    def shown(self) -> tuple[object, ...]:
        """All but timings."""
        end = self.terminal
        assert end is not None
        return (
            self.text, self.num_tokens, self.token_ids, self.logprobs, self.prompt_logprobs,
            end.reason, end.stop_string, end.stop_token_id, end.error, end.usage,
        )  # fmt: skip


class Sink:
    def __init__(self) -> None:
        self.choices: dict[int, Received] = {}

    def add_text(
        self,
        handle: int,
        text: str,
        num_tokens: int,
        token_ids: Sequence[int] = (),
        logprobs: SequenceLogprobs | None = None,
        parsed: Parsed | None = None,
    ) -> None:
        received = self.choices.setdefault(handle, Received())
        assert received.terminal is None, "text after the terminal event"
        received.text += text
        received.num_tokens += num_tokens
        received.token_ids += token_ids
        if parsed is not None:
            received.parsed.append(parsed)
        if logprobs is not None:
            received.logprobs += logprobs.tokens
            received.prompt_logprobs += logprobs.prompt

    def finish(self, handle: int, terminal: Terminal) -> None:
        received = self.choices.setdefault(handle, Received())
        assert received.terminal is None, "a second terminal event"
        received.terminal = terminal


def tier_over(
    tokenizer: Tokenizer,
    *replicas: ScriptedReplica,
    max_resumes: int = 3,
    wait_s: float = 5.0,
    max_held: int = 100,
    max_requests: int = 1000,
    retry_budget: int = 1000,
) -> Tier:
    metrics = TokenizerMetrics(CollectorRegistry())
    router = Router(list(replicas))
    return Tier(
        model="scripted",
        tokenizer=tokenizer,
        template=None,
        encoder=Encoder(tokenizer, None, "scripted"),
        token_thread=CallThread("tokens"),
        embedding_thread=CallThread("embed"),
        router=router,
        dispatcher=Dispatcher(router, metrics, max_held_requests=max_held, wait_s=wait_s),
        metrics=metrics,
        max_requests=max_requests,
        max_open=min(max_requests, max_held),
        max_resumes=max_resumes,
        retry_budget=RetryBudget(retry_budget),
    )


async def start(tier: Tier, request: TextRequest, handle: int = 0) -> tuple[RunningRequest, Sink]:
    """A request whose prompt is token ids, submitted or held."""
    sink = Sink()
    running = RunningRequest(tier, request, handle, sink, lambda _: None)
    running.start()
    await settle()
    return running, sink


async def settle() -> None:
    """Let everything happen that is due."""
    for _ in range(4):
        await asyncio.sleep(0)
