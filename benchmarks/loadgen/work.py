"""What is asked of a server: prompts of an exact number of tokens, outputs of an exact number. Knows no server."""

import random
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal

FIRST_ID = 100
"""Lower ids are special tokens in most vocabularies."""
WORDS = (
    "the sea was calm and a small boat came out of the harbour with two people who had never been so far from home "
    "before they talked about rain work money and what their friends would say when it was all over again some day"
).split()

PromptForm = Literal["ids", "text"]


@dataclass(frozen=True)
class Work:
    """The size of each request. Equal seeds give equal prompts, so that servers are asked the same."""

    prompt_tokens: int = 128
    output_tokens: int = 64
    vocab_size: int = 49152
    seed: int = 0
    form: PromptForm = "ids"
    tokenizer: str = ""
    """tokenizer.json of the model; needed for texts of an exact length."""
    timeout_s: float = 600.0

    def refuse(self) -> None:
        """Raise ValueError for what cannot be asked."""
        if self.prompt_tokens < 1 or self.output_tokens < 1:
            raise ValueError("--prompt-tokens and --output-tokens: 1 or more")
        if self.vocab_size <= FIRST_ID:
            raise ValueError(f"--vocab-size: more than {FIRST_ID}, whose ids are left out as special")
        if self.form == "text" and not self.tokenizer:
            raise ValueError("prompts as text need --tokenizer FILE, the model's tokenizer.json")


class Prompts:
    """Prompts by number: no two begin alike, so that no prefix cache helps anybody."""

    def __init__(self, work: Work) -> None:
        work.refuse()
        self.work = work
        self._tokenizer: Any = None
        if work.form == "text":
            self._tokenizer = import_module("tokenizers").Tokenizer.from_file(work.tokenizer)

    def ids(self, number: int) -> list[int]:
        """Random token ids."""
        rng = random.Random(f"{self.work.seed}/{number}")
        return [rng.randrange(FIRST_ID, self.work.vocab_size) for _ in range(self.work.prompt_tokens)]

    def text(self, number: int) -> str:
        """Random words that the tokenizer turns into exactly the number of tokens. Raises ValueError."""
        rng = random.Random(f"{self.work.seed}/{number}")
        words = [rng.choice(WORDS) for _ in range(self.work.prompt_tokens)]
        while len(self._tokenizer.encode(" ".join(words)).ids) > self.work.prompt_tokens and len(words) > 1:
            words.pop()
        text = " ".join(words)
        while (missing := self.work.prompt_tokens - len(self._tokenizer.encode(text).ids)) > 0:
            text += " a" * missing
        if missing:
            raise ValueError(f"no text of exactly {self.work.prompt_tokens} tokens was found")
        return text

    def prompt(self, number: int) -> list[int] | str:
        """In the form that was asked for."""
        return self.ids(number) if self.work.form == "ids" else self.text(number)
