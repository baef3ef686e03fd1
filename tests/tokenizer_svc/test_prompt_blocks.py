import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenizer_svc import prompt_blocks
from tokenizer_svc.cache_view import CacheView
from tokenizer_svc.prompt_blocks import PromptBlocks
from tokenwire.block_hash import SHARED_SCHEME, TENANT_SCHEME, block_hashes, cache_root
from tokenwire.cache_events import CacheChange, CacheEvent


def view_of(scheme: str, block_size: int, *prompts: list[int], tenant: str = "", salt: str = "") -> CacheView:
    view = CacheView()
    view.connect(1, scheme, block_size)
    root = cache_root(tenant, salt, scheme)
    held = {hashed for prompt in prompts for hashed in block_hashes(root, prompt, block_size)}
    view.apply(CacheEvent(1, 1, CacheChange.SNAPSHOT, tuple(held)))
    return view


@given(st.data())
def test_cached_tokens_are_those_of_the_longest_common_beginning_in_whole_blocks(data: st.DataObject) -> None:
    token = st.integers(0, 1)
    prompt = data.draw(st.lists(token, max_size=24))
    held = data.draw(st.lists(st.lists(token, max_size=24), max_size=4))
    sizes = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=3))

    def common(size: int) -> int:
        def of(other: list[int]) -> int:
            count = 0
            while prompt[count : count + size] == other[count : count + size] and count + size <= len(other):
                count += size
                if count + size > len(prompt):
                    break
            return min(count, len(prompt) // size * size)

        return max(map(of, held), default=0)

    views = [view_of(SHARED_SCHEME, size, *held) for size in sizes]
    assert PromptBlocks(prompt, "", "").cached_tokens(views) == [common(size) for size in sizes]


def test_tenants_and_salts_are_told_apart_as_the_model_tier_does() -> None:
    prompt = list(range(8))
    shared = view_of(SHARED_SCHEME, 4, prompt, tenant="a")
    salted = view_of(SHARED_SCHEME, 4, prompt, salt="s")
    own = view_of(TENANT_SCHEME, 4, prompt, tenant="a")
    none = CacheView()
    views = [shared, salted, own, none]
    assert PromptBlocks(prompt, "a", "").cached_tokens(views) == [8, 0, 8, 0]
    assert PromptBlocks(prompt, "b", "").cached_tokens(views) == [8, 0, 0, 0]
    assert PromptBlocks(prompt, "b", "s").cached_tokens(views) == [0, 8, 0, 0]
    assert not list(PromptBlocks(prompt, "", "").beginning(none))


def test_no_more_is_hashed_than_somebody_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    real = prompt_blocks.block_hash
    monkeypatch.setattr(prompt_blocks, "block_hash", lambda *arguments: calls.append(1) or real(*arguments))
    monkeypatch.setattr(prompt_blocks, "MAX_NOTED_BLOCKS", 5)
    prompt = [random.randrange(1000) for _ in range(400)]
    view = view_of(SHARED_SCHEME, 4, prompt[:12])
    blocks = PromptBlocks(prompt, "", "")
    assert blocks.cached_tokens([view, view]) == [12, 12] and len(calls) == 4
    assert list(blocks.beginning(view)) == block_hashes(cache_root("", "", SHARED_SCHEME), prompt, 4)[:5]
    assert len(calls) == 5
    monkeypatch.setattr(prompt_blocks, "MAX_BLOCKS", 2)
    assert PromptBlocks(prompt, "", "").cached_tokens([view]) == [8]
