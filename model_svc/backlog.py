"""What waits in the engine or is on its way to it, what open requests hold besides, and whether more may come.

Knows counts and their bounds. Does not know who waits for a sequence, nor how it reaches the engine.
"""

from collections.abc import Mapping

from model_svc.engine.events import EngineLoad
from model_svc.engine.sequence import Sequence
from tokenwire.errors import Overloaded

RETRY_AFTER_S = 1.0


class Backlog:
    """Of one engine. A sequence is `sent`, then in time `received`, counted in the load from then on, and `ended`."""

    def __init__(self, max_requests: int, max_tokens: int) -> None:
        self.max_requests, self.max_tokens = max_requests, max_tokens
        self.load = EngineLoad()
        """The engine's last word."""
        self._num_sent = self._num_received = 0
        self._sent_tokens: dict[int, int] = {}
        """By number, of the sequences on their way: prompt tokens."""
        self._num_named_ids = 0
        """Token ids in the options of open requests."""
        self._num_open_choices: dict[int, int] = {}
        """By request (`Sequence.request`)."""

    @property
    def num_queued(self) -> int:
        """Sequences that wait in the engine or are on their way to it."""
        return self.load.queued + self._num_sent - self._num_received

    @property
    def num_queued_tokens(self) -> int:
        """Their prompt tokens."""
        return self.load.queued_tokens + sum(self._sent_tokens.values())

    @property
    def room(self) -> tuple[int, int]:
        """Sequences and prompt tokens that may still be queued; below 0 where a single request was larger."""
        return self.max_requests - self.num_queued, self.max_tokens - self.num_queued_tokens

    def admit(self, sequences: list[Sequence]) -> None:
        """Raise Overloaded when the sequences of one request may not wait now.

        A request that finds nothing waiting may exceed the bounds by itself.
        """
        num_sequences, num_tokens = len(sequences), sum(sequence.num_tokens for sequence in sequences)
        named_ids = sequences[0].sampling.num_named_ids
        queued, bound = self.num_queued, self.max_requests
        if queued and queued + num_sequences > bound:
            raise full(f"{queued} sequences wait already and {bound} may (max_queued_requests); {num_sequences} more")
        tokens, bound = self.num_queued_tokens, self.max_tokens
        if queued and tokens + num_tokens > bound:
            raise full(f"{tokens} prompt tokens wait already and {bound} may (max_queued_tokens); {num_tokens} more")
        if self._num_open_choices and self._num_named_ids + named_ids > bound:
            message = f"open requests name {self._num_named_ids} token ids in their options (logit_bias, "
            message += f"allowed_token_ids, banned_sequences) and {bound} may (max_queued_tokens); {named_ids} more"
            raise full(message)

    def sent(self, sequence: Sequence) -> None:
        """A sequence is on its way."""
        num_choices = self._num_open_choices.get(sequence.request, 0)
        self._num_open_choices[sequence.request] = num_choices + 1
        self._num_named_ids += sequence.sampling.num_named_ids if not num_choices else 0
        self._num_sent += 1
        self._sent_tokens[self._num_sent] = sequence.num_tokens

    def received(self, load: EngineLoad, num_received: int) -> None:
        """The engine's load, with `num_received` sequences in it since it started."""
        self.load = load
        for number in range(self._num_received + 1, num_received + 1):
            del self._sent_tokens[number]
        self._num_received = num_received

    def ended(self, sequence: Sequence) -> None:
        """A choice has ended; with a request's last one its named ids are no longer held."""
        self._num_open_choices[sequence.request] -= 1
        if not self._num_open_choices[sequence.request]:
            del self._num_open_choices[sequence.request]
            self._num_named_ids -= sequence.sampling.num_named_ids

    def all_ended(self) -> None:
        """Nothing is open any more."""
        self._num_open_choices, self._num_named_ids = {}, 0

    def check_integrity(self, num_open_choices: Mapping[int, int]) -> None:
        """Raise AssertionError unless this is what is open, by request, and what waits is within its bounds."""
        if self._num_open_choices != num_open_choices:
            raise AssertionError("the choices of open requests are miscounted")
        if len(self._sent_tokens) != self._num_sent - self._num_received:
            raise AssertionError("sequences on their way to the engine are miscounted")
        if (not num_open_choices and self._num_named_ids) or self.num_queued < 0 or self.num_queued_tokens < 0:
            raise AssertionError("named ids or waiting sequences are miscounted")

    def restart(self, num_blocks: int) -> None:
        """Another engine, with so many KV blocks: nothing waits in it, and nothing is on its way."""
        self.load = EngineLoad(kv_blocks_total=num_blocks)
        self._num_sent = self._num_received = 0
        self._sent_tokens = {}


def full(what: str) -> Overloaded:
    """The error for a request that may not wait."""
    return Overloaded(f"{what} are refused", reason="QUEUE_FULL", retry_after_s=RETRY_AFTER_S)
