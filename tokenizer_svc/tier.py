"""What every request of this process shares."""

from dataclasses import dataclass, field

from tokenizer_svc.answers import AnswerFormat
from tokenizer_svc.call_thread import CallThread
from tokenizer_svc.chat_template import ChatTemplate
from tokenizer_svc.dispatcher import Dispatcher
from tokenizer_svc.encoder import Encoder
from tokenizer_svc.metrics import TokenizerMetrics
from tokenizer_svc.router import Router
from tokenizer_svc.tokenizer import Tokenizer
from tokenwire.errors import InvalidRequest, NotFound, Overloaded
from tokenwire.requests import refuse_model_name
from tokenwire.routing.retry_budget import RetryBudget
from tokenwire.telemetry.tracing import Tracer

RETRY_AFTER_S = 1.0


@dataclass(slots=True)
class Tier:
    """One model's tokenizer, its template, and the way to its model tiers."""

    model: str
    """Name clients ask for."""
    tokenizer: Tokenizer
    template: ChatTemplate | None
    encoder: Encoder
    """Of prompts."""
    token_thread: CallThread
    """Of calls that only tokenize, detokenize or render."""
    embedding_thread: CallThread
    """Of inputs to embed."""
    router: Router
    dispatcher: Dispatcher
    """Where requests go once they are token ids."""
    metrics: TokenizerMetrics
    max_requests: int
    """Choices that may run at once."""
    max_open: int
    """Choices that one session may have open and none is refused for want of room, while it is the only one."""
    max_resumes: int
    """How often a choice may go on after a loss."""
    retry_budget: RetryBudget
    """How many that have no token yet may be sent down once more after a failure."""
    answers: AnswerFormat = AnswerFormat()
    """How reasoning and tool calls are split from the text."""
    tracer: Tracer | None = None
    """None: nothing is traced."""
    running: int = field(default=0, init=False)
    """Choices of the requests that have not ended."""

    def check_model(self, name: str) -> None:
        """Raise NotFound unless `name` is ours, an adapter's or empty; InvalidRequest for one that is too long."""
        refuse_model_name(name)
        if name and name != self.model and name not in self.adapters:
            served = ", ".join(map(repr, (self.model, *sorted(self.adapters))))
            raise NotFound(f"model: {name!r:.80} is not served here; served: {served}", reason="MODEL_NOT_FOUND")

    def check_base(self, name: str) -> None:
        """As `check_model`, but adapters' names are not taken: what is asked for is done without them."""
        refuse_model_name(name)
        if name and name != self.model:
            message = f"model: {name!r:.80} is not served for this, which adapters do not change; {self.model!r} is"
            raise NotFound(message, reason="MODEL_NOT_FOUND")

    def adapter_of(self, model: str, adapter: str) -> str:
        """The adapter that a request asks for by `options.adapter` or as its model; empty: none.

        Raises NotFound where no model tier has it, InvalidRequest where the two contradict each other.
        """
        self.check_model(model)
        asked = model if model and model != self.model else ""
        if adapter and asked and adapter != asked:
            description = f"{adapter!r:.80} contradicts the model, which is the adapter {asked!r:.80}"
            raise InvalidRequest.of("options.adapter", description)
        found = adapter or asked
        if found and found not in self.adapters:
            raise self.adapter_missing(found)
        return found

    def adapter_missing(self, name: str) -> NotFound:
        """The error for an adapter that no model tier has."""
        known = ", ".join(sorted(self.adapters)) or "none"
        message = f"options.adapter: {name!r:.80} is not loaded by any model tier; loaded: {known}"
        return NotFound(message, reason="ADAPTER_NOT_FOUND")

    @property
    def adapters(self) -> frozenset[str]:
        """Adapters that some model tier has, as far as is known."""
        return frozenset().union(*(replica.adapters for replica in self.router.replicas))

    def admit(self, num_choices: int) -> None:
        """Count a request's choices in; raises Overloaded when too many run. Who is admitted leaves once by `leave`."""
        if self.running + num_choices > self.max_requests:
            message = f"{self.running} choices run here and {self.max_requests} may (max_requests)"
            raise Overloaded(
                f"{message}: {num_choices} more are refused", reason="TOO_MANY_REQUESTS", retry_after_s=RETRY_AFTER_S
            )
        self.running += num_choices
        self.metrics.running.inc(num_choices)

    def check_integrity(self) -> None:
        """Raise AssertionError unless what runs is within its bound, and what is held is counted right."""
        if not 0 <= self.running <= self.max_requests:
            raise AssertionError(f"{self.running} choices run, of at most {self.max_requests}")
        self.dispatcher.check_integrity()

    def leave(self, num_choices: int) -> None:
        """Count a request's choices out."""
        self.running -= num_choices
        self.metrics.running.dec(num_choices)

    @property
    def max_context_tokens(self) -> int:
        """Longest context that every known model tier takes; 0 while none is known."""
        return min((r.max_context_tokens for r in self.router.replicas if r.max_context_tokens), default=0)

    @property
    def longest_context_tokens(self) -> int:
        """Longest context that any ready model tier takes; 0 where one's is not known."""
        contexts = [replica.max_context_tokens for replica in self.router.ready_replicas()]
        return max(contexts) if contexts and all(contexts) else 0

    @property
    def generates(self) -> bool:
        """Whether a model tier gives text, as far as is known: while none is connected, none is said to."""
        return any(replica.generates for replica in self.router.replicas if replica.max_context_tokens)

    @property
    def embedding_size(self) -> int:
        """Values of an embedding; 0 where no known model tier gives any."""
        return max((replica.embedding_size for replica in self.router.replicas), default=0)
