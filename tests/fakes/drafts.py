"""A lookup whose drafts are right as often as a test wants, for the fake runner's model."""

import random
from collections.abc import Sequence as Rows

from model_svc.engine.sequence import PENDING, Sequence
from tests.fakes.runner import next_token


class ScriptedLookup:
    """Drafts of random length, each token what the fake model says with `right` probability, else another."""

    def __init__(self, seed: int, *, right: float, found: float = 1.0) -> None:
        self.rng, self.right, self.found = random.Random(seed), right, found
        self.known: set[int] = set()
        """Sequences that were looked up and not forgotten."""

    def find(self, sequence: Sequence, num_tokens: int) -> tuple[list[int], int]:
        assert PENDING not in sequence.token_ids and num_tokens >= 1
        self.known.add(sequence.sequence_id)
        if self.rng.random() >= self.found:
            return [], 0
        tokens = list(sequence.token_ids)
        for _ in range(self.rng.randint(1, num_tokens)):
            right = next_token(tokens)
            tokens.append(right if self.rng.random() < self.right else (right + 1) % 997)
        return tokens[sequence.num_tokens :], 2

    def forget(self, sequence: Sequence) -> None:
        self.known.discard(sequence.sequence_id)


def right_tokens(sequence: Sequence, num_tokens: int) -> list[int]:
    """What the fake model says next, so many times."""
    assert PENDING not in sequence.token_ids
    tokens = list(sequence.token_ids)
    for _ in range(num_tokens):
        tokens.append(next_token(tokens))
    return tokens[sequence.num_tokens :]


class ScriptedForcing:
    """Says that a constraint leaves no choice about the next tokens: what the fake model says, or all wrong."""

    def __init__(self, num_tokens: int, *, right: bool = True) -> None:
        self.num_tokens, self.right = num_tokens, right

    def forced(self, sequence: Sequence, num_tokens: int) -> list[int]:
        assert sequence.constraint is not None
        made = right_tokens(sequence, min(num_tokens, self.num_tokens))
        return made if self.right else [(token + 1) % 997 for token in made]


class ScriptedModel:
    """A draft model that is always right, and always as far behind."""

    def __init__(self, num_behind: int) -> None:
        self.behind = num_behind

    def most(self, sequence: Sequence) -> int:
        return 10**9

    def num_behind(self, sequence: Sequence) -> int:
        return self.behind

    def propose(self, wanted: Rows[tuple[Sequence, int]]) -> list[list[int]]:
        return [right_tokens(sequence, number) for sequence, number in wanted]

    def forget(self, sequence: Sequence) -> None:
        pass

    def close(self) -> None:
        pass


class RecordedLookup:
    """Drafts from what other runs made of the same prompts: all right, or one of each few wrong.

    Wrong ones are other tokens below `vocab_size`.
    """

    def __init__(self, outputs: dict[tuple[tuple[int, ...], int], list[int]], seed: int, vocab_size: int) -> None:
        """`outputs`: by prompt and choice."""
        self.outputs, self.rng, self.vocab_size = outputs, random.Random(seed), vocab_size

    def find(self, sequence: Sequence, num_tokens: int) -> tuple[list[int], int]:
        prompt = tuple(sequence.token_ids[: sequence.num_prompt_tokens])
        ahead = self.outputs[prompt, sequence.choice][sequence.num_new_outputs :][:num_tokens]
        drafts = ahead + [self.rng.randrange(self.vocab_size) for _ in range(num_tokens - len(ahead))]
        if self.rng.random() < 0.5:
            drafts[self.rng.randrange(len(drafts))] = self.rng.randrange(self.vocab_size)
        return drafts[: self.rng.randint(0, num_tokens)], 2

    def forget(self, sequence: Sequence) -> None:
        pass
