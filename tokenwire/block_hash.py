"""The chained hashes that name KV blocks in cache events, so that a router can tell which prompts a replica has cached.

A block's hash covers its own tokens and the hash of the block before it; the first block's covers the root, which keeps
requests apart that must not share (`cache_root`). Whoever finds a block by its hash compares the tokens as well: a hash
says where to look, never that two prefixes are equal. Does not know blocks or sequences.
"""

import struct
from collections.abc import Sequence
from hashlib import blake2b

SHARED_SCHEME = "tokenwire-1"
"""What Hello calls these hashes where all tenants share a cache."""
TENANT_SCHEME = "tokenwire-1-tenant"
"""The same where each tenant has a cache of its own."""

HASH_BYTES = 8


def cache_root(tenant: str, cache_salt: str, scheme: str, adapter: str = "") -> str:
    """What a request's first block is chained to: requests of different roots never share a block.

    `adapter`: the adapter that its keys and values are computed with; empty: none.
    """
    root = f"{tenant if scheme == TENANT_SCHEME else ''}\0{cache_salt}"
    return f"{root}\0{adapter}" if adapter else root


def is_root_of(root: str, adapter: str) -> bool:
    """Whether this is the root of requests with this adapter."""
    return root.count("\0") > 1 and root.rpartition("\0")[2] == adapter


def root_hash(root: str) -> int:
    """The hash that the first block is chained to."""
    return int.from_bytes(blake2b(root.encode(errors="surrogatepass"), digest_size=HASH_BYTES).digest(), "little")


def block_hash(parent: int, token_ids: Sequence[int]) -> int:
    """BLAKE2b with 8 bytes over the parent's hash (64 bit) and the token ids (32 bit each), all little-endian."""
    content = parent.to_bytes(HASH_BYTES, "little") + struct.pack(f"<{len(token_ids)}I", *token_ids)
    return int.from_bytes(blake2b(content, digest_size=HASH_BYTES).digest(), "little")


def block_hashes(root: str, token_ids: Sequence[int], block_size: int) -> list[int]:
    """The hashes of all whole blocks of a prompt."""
    hashes: list[int] = []
    parent = root_hash(root)
    for start in range(0, len(token_ids) - block_size + 1, block_size):
        parent = block_hash(parent, token_ids[start : start + block_size])
        hashes.append(parent)
    return hashes
