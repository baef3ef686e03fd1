"""What tenants have used, in memory of a fixed size that the workers of a gateway share.

Rates are kept as the moment at which everything used so far will have been paid for (the generic cell rate algorithm,
ITU-T I.371), so that a tenant who uses nothing leaves nothing behind, and its place is free. A file that is mapped,
with a lock that the kernel takes back from a process that dies. Does not know limits.
"""

import fcntl
import hashlib
import mmap
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

WAYS = 8
"""Places in which a tenant may be."""
SETS = 1024
HEAD = struct.Struct("16s")
"""A secret of this run: nobody can choose names that share their places."""
PLACE = struct.Struct("16sdd")
"""Hash of a tenant, and when its requests and its tokens will have been paid for, on the monotonic clock."""
COUNT = struct.Struct("I")
NOBODY = bytes(16)


class UsageTable:
    """One place per tenant that uses something; those who find none share the last."""

    def __init__(self, path: Path | None = None, *, worker: int = 0, num_workers: int = 1) -> None:
        """`path`: shared by all workers, made by the first; None: this process is alone. `worker`: its number, from 0.

        What an earlier process of the same number had open is forgotten.
        """
        self._worker = worker
        self._num_workers = num_workers
        self._place_bytes = PLACE.size + COUNT.size * num_workers
        self._count_offset = PLACE.size + COUNT.size * worker
        size = HEAD.size + self._place_bytes * (WAYS * SETS + 1)
        self._fd = -1
        if path is None:
            self._memory = mmap.mmap(-1, size)
        else:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
            os.ftruncate(self._fd, size)
            self._memory = mmap.mmap(self._fd, size)
        with self.locked():
            (self._secret,) = HEAD.unpack_from(self._memory)
            if self._secret == NOBODY:
                self._secret = os.urandom(HEAD.size)
                HEAD.pack_into(self._memory, 0, self._secret)
            for offset in self._offsets(range(WAYS * SETS + 1)):
                COUNT.pack_into(self._memory, offset + self._count_offset, 0)

    def close(self) -> None:
        """Let go of the memory; the others keep it."""
        self._memory.close()
        if self._fd >= 0:
            os.close(self._fd)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Nobody else reads or writes while the block runs. A few microseconds; never wait for anything inside."""
        if self._fd < 0:
            yield
            return
        fcntl.lockf(self._fd, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.lockf(self._fd, fcntl.LOCK_UN)

    def find(self, tenant: str, now_s: float) -> int:
        """Where a tenant's use is kept; its place is taken for it if it has none. Only while locked."""
        digest = hashlib.blake2b(tenant.encode(errors="surrogatepass"), digest_size=16, key=self._secret).digest()
        first = int.from_bytes(digest[:4]) % SETS * WAYS
        free = -1
        for offset in self._offsets(range(first, first + WAYS)):
            known, requests_s, tokens_s = PLACE.unpack_from(self._memory, offset)
            if known == digest:
                return offset
            if free < 0 and requests_s <= now_s and tokens_s <= now_s and not self.num_open(offset):
                free = offset
        if free < 0:
            return HEAD.size + self._place_bytes * WAYS * SETS
        PLACE.pack_into(self._memory, free, digest, 0.0, 0.0)
        return free

    def paid_s(self, place: int) -> tuple[float, float]:
        """When what was used will have been paid for: requests and tokens. Only while locked."""
        _, requests_s, tokens_s = PLACE.unpack_from(self._memory, place)
        return requests_s, tokens_s

    def set_paid_s(self, place: int, requests_s: float, tokens_s: float) -> None:
        """Change that. Only while locked."""
        digest, _, _ = PLACE.unpack_from(self._memory, place)
        PLACE.pack_into(self._memory, place, digest, requests_s, tokens_s)

    def num_open(self, place: int) -> int:
        """Streams that are open in all workers. Only while locked."""
        counts: tuple[int, ...] = struct.unpack_from(f"{self._num_workers}I", self._memory, place + PLACE.size)
        return sum(counts)

    def add_open(self, place: int, number: int) -> None:
        """Count streams of this worker in, or out. A place is its tenant's while some are open. Only while locked."""
        (own,) = COUNT.unpack_from(self._memory, place + self._count_offset)
        COUNT.pack_into(self._memory, place + self._count_offset, max(0, own + number))

    def _offsets(self, places: range) -> Iterator[int]:
        return (HEAD.size + self._place_bytes * place for place in places)
