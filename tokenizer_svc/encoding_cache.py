"""Token ids of texts that were encoded before, the most recently used of them, within a bound in bytes.

Knows neither how texts are cut nor how they are encoded. Thread-safe.
"""

import sys
import threading
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence

Key = tuple[str, int, str]
"""Salt, how the text is encoded (`prompt_encoder`), and the text."""
ENTRY_BYTES = 320
"""What an entry takes besides its text and its ids: key, list node, array and their headers."""


class EncodingCache:
    """Least recently used entries go first. An entry larger than the whole is not kept."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self._entries: OrderedDict[Key, array[int]] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, keys: Sequence[Key]) -> list["array[int] | None"]:
        """The ids of each, None where they are not known. What is returned must not be changed."""
        entries = self._entries
        found: list[array[int] | None] = []
        with self._lock:
            for key in keys:
                ids = entries.get(key)
                if ids is not None:
                    entries.move_to_end(key)
                found.append(ids)
        return found

    def put(self, items: Iterable[tuple[Key, list[int]]]) -> None:
        """Keep these."""
        with self._lock:
            for key, token_ids in items:
                size = _size(key, len(token_ids))
                if key in self._entries or size > self.max_bytes:
                    continue
                self._entries[key] = array("I", token_ids)
                self.num_bytes += size
            while self.num_bytes > self.max_bytes:
                key, ids = self._entries.popitem(last=False)
                self.num_bytes -= _size(key, len(ids))


def _size(key: Key, num_tokens: int) -> int:
    return ENTRY_BYTES + sys.getsizeof(key[2]) + len(key[0]) + 4 * num_tokens
