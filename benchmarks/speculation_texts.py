"""What speculation is measured with: texts to copy, code to edit, and requests that have nothing to repeat."""

from pathlib import Path
from random import Random

import tokenizers

from benchmarks.machine import ROOT

NUM_DECISIONS = 15
"""Of docs/decisions, which are not changed once written: the first ones."""
PARAGRAPH_CHARACTERS = (250, 900)

CODE = (
    '''def moving_average(values, window):
    """The mean of each run of `window` values."""
    if window < 1:
        raise ValueError("window must be at least 1")
    total = sum(values[:window])
    averages = [total / window]
    for index in range(window, len(values)):
        total += values[index] - values[index - window]
        averages.append(total / window)
    return averages
''',
    """class Counter:
    def __init__(self, start=0):
        self.value = start
        self.history = []

    def add(self, amount):
        self.history.append(self.value)
        self.value += amount
        return self.value

    def undo(self):
        if self.history:
            self.value = self.history.pop()
        return self.value
""",
    """def read_table(path, separator=","):
    rows = []
    with open(path) as lines:
        header = next(lines).rstrip().split(separator)
        for number, line in enumerate(lines, start=2):
            cells = line.rstrip().split(separator)
            if len(cells) != len(header):
                raise ValueError(f"line {number} has {len(cells)} cells, not {len(header)}")
            rows.append(dict(zip(header, cells)))
    return rows
""",
    """function groupBy(items, keyOf) {
  const groups = new Map();
  for (const item of items) {
    const key = keyOf(item);
    if (!groups.has(key)) {
      groups.set(key, []);
    }
    groups.get(key).push(item);
  }
  return groups;
}
""",
)
EDITS = (
    "Add a comment above each line of this code and give all of it again:",
    "Rename the function or class in this code and give all of it again, the rest unchanged:",
    "Give this code again, with a docstring or comment at its start:",
)


class Texts:
    """Prompts as token ids, by the tokenizer and the chat form of the default model."""

    def __init__(self, folder: Path) -> None:
        """`folder`: the model's."""
        self._tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.end = self._tokenizer.token_to_id("<|im_end|>")

    def copying(self, number: int) -> list[int]:
        """A request to give a text again."""
        texts = paragraphs()
        return self._request(f"Repeat the following text exactly, word for word:\n\n{texts[number % len(texts)]}")

    def editing(self, number: int) -> list[int]:
        """A request to change a little of some code."""
        edit, code = EDITS[number % len(EDITS)], CODE[number // len(EDITS) % len(CODE)]
        return self._request(f"{edit}\n\n```\n{code}```")

    def random(self, number: int, length: int = 128) -> list[int]:
        """Tokens drawn at random."""
        rng = Random(number)
        return [rng.randrange(100, self._tokenizer.get_vocab_size() - 100) for _ in range(length)]

    def _request(self, text: str) -> list[int]:
        chat = f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"
        return list(self._tokenizer.encode(chat, add_special_tokens=False).ids)


def paragraphs() -> list[str]:
    """Of the project's own decisions, those of some length."""
    decisions = sorted((ROOT / "docs/decisions").glob("*.md"))[:NUM_DECISIONS]
    texts = "\n\n".join(path.read_text() for path in decisions).split("\n\n")
    shortest, longest = PARAGRAPH_CHARACTERS
    return [text for text in texts if shortest <= len(text) <= longest and not text.startswith(("|", "-", "#"))]
