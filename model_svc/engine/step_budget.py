"""How much a step may hold after the device ran out of memory: less at once, and slowly more again.

Knows counts alone; who gives way is the scheduler's to say.
"""

GOOD_STEPS = 1000
"""Steps without running out after which the budget doubles, up to what was set."""


class StepBudget:
    """Most tokens of a step and most running sequences; `most_tokens` and `most_sequences` are what was set."""

    def __init__(self, most_tokens: int, most_sequences: int) -> None:
        self.max_tokens = self._most_tokens = most_tokens
        self.max_sequences = self._most_sequences = most_sequences
        self.num_out_of_memory = 0
        """Steps that ran out."""
        self._num_good_steps = 0

    @property
    def least_tokens(self) -> int:
        """Where halving ends: each running sequence may still decode, as far as it might before."""
        return max(1, min(self.max_sequences, self._most_tokens))

    def shrink(self, num_tokens: int, num_left: int | None) -> bool:
        """A step of `num_tokens` ran out. Give steps half the tokens; `num_left` sequences run on, None: as before.

        With None it halves until such a step would be a smaller one. False when that cannot be had.
        """
        self.num_out_of_memory += 1
        self._num_good_steps = 0
        if num_left is not None:
            self.max_sequences = max(1, num_left)
            self.max_tokens = max(self.least_tokens, self.max_tokens // 2)
            return True
        if num_tokens <= self.least_tokens:
            return False
        while self.max_tokens >= num_tokens:
            self.max_tokens = max(self.least_tokens, self.max_tokens // 2)
        return True

    def grow(self) -> None:
        """A step went well."""
        if self.max_tokens == self._most_tokens and self.max_sequences == self._most_sequences:
            return
        self._num_good_steps += 1
        if self._num_good_steps >= GOOD_STEPS:
            self._num_good_steps = 0
            self.max_tokens = min(self._most_tokens, 2 * self.max_tokens)
            self.max_sequences = min(self._most_sequences, 2 * self.max_sequences)
