"""The scheduler with adapters: who waits for a slot, who is overtaken, and that nothing is held for ever."""

import random
from dataclasses import replace

from model_svc.engine.roster import ADAPTER_PATIENCE_S
from model_svc.engine.sequence import Sequence
from tests.fakes.runner import runner_info
from tests.fakes.scheduling import Harness, expected_output, sequence
from tokenwire.block_hash import SHARED_SCHEME, cache_root
from tokenwire.requests import FinishReason


def harness(
    num_slots: int,
    *names: str,
    num_blocks: int = 64,
    max_bytes: int = 100,
    overlap: bool = False,
    batch: int = 8,
) -> Harness:
    info = replace(runner_info(num_blocks=num_blocks), num_adapter_slots=num_slots, max_adapter_bytes=max_bytes)
    made = Harness(overlap=overlap, of=info, batch=batch)
    for name in names:
        made.scheduler.add_adapter(name, 1)
    return made


def with_adapter(name: str, prompt: list[int], **fields: object) -> Sequence:
    return sequence(prompt, adapter=name, cache_root=cache_root("", "", SHARED_SCHEME, name), **fields)  # type: ignore[arg-type]


def running(made: Harness) -> list[str]:
    return [each.adapter for each in made.scheduler.roster.running]


def test_more_adapters_than_slots_take_turns() -> None:
    made = harness(1, "a", "b")
    first, second, plain = with_adapter("a", [1, 2]), with_adapter("b", [3, 4]), sequence([5, 6])
    made.add(first, second, plain)
    made.step()
    assert running(made) == ["a", ""], "one without an adapter does not wait for a slot"
    made.run()
    for each, prompt in ((first, [1, 2]), (second, [3, 4]), (plain, [5, 6])):
        assert made.outputs[each.sequence_id] == expected_output(prompt, 8)
    assert made.engine.load().num_adapters == 2 and made.engine.load().num_adapters_on_device == 1


def test_what_waits_long_for_a_slot_is_overtaken_no_more() -> None:
    made = harness(1, "a", "b")
    made.add(with_adapter("a", [1], max_tokens=50, arrival_s=made.clock()))
    made.step()
    waiting = with_adapter("b", [2], arrival_s=made.clock())
    made.add(waiting, with_adapter("a", [3], max_tokens=50, arrival_s=made.clock()))
    made.step()
    assert running(made) == ["a", "a"], "it has waited for a moment only"
    made.clock.now_s += ADAPTER_PATIENCE_S
    late, plain = with_adapter("a", [4], arrival_s=made.clock()), sequence([5], arrival_s=made.clock())
    made.add(late, plain)
    made.step()
    assert running(made) == ["a", "a", ""] and made.scheduler.sequences[late.sequence_id].slot < 0
    made.run(lambda: waiting.slot >= 0)
    assert "a" not in running(made)
    made.run()


def test_any_number_that_wait_for_a_slot_hold_nobody_up_without_an_adapter_or_with_one_that_has_its_slot() -> None:
    made = harness(1, "poet", "coder", batch=4)
    made.add(with_adapter("poet", [1], max_tokens=50))
    made.step()
    made.add(*(with_adapter("coder", [2, n], arrival_s=made.clock()) for n in range(40)))
    made.add(sequence([3], arrival_s=made.clock()), with_adapter("poet", [4], arrival_s=made.clock()))
    made.step()
    assert running(made) == ["poet", "", "poet"]
    made.run()


def test_a_slot_is_asked_for_once_a_step_by_all_that_want_the_same_adapter() -> None:
    made = harness(1, "poet", "coder", "critic", batch=8)
    made.add(with_adapter("poet", [1], max_tokens=50))
    made.step()
    asked: list[str] = []
    has_room = made.scheduler.roster.adapters.has_room

    def counted(name: str, without: frozenset[str] = frozenset()) -> bool:
        asked.append(name)
        return has_room(name, without)

    made.scheduler.roster.adapters.has_room = counted  # type: ignore[method-assign]
    made.add(*(with_adapter(("coder", "critic")[n % 2], [2, n], arrival_s=made.clock()) for n in range(500)))
    made.step()
    assert sorted(asked) == ["coder", "critic"]


def test_a_higher_priority_that_finds_no_slot_takes_that_of_an_adapter_that_lower_ones_hold() -> None:
    made = harness(2, "a", "b", "c", batch=8)
    first = [with_adapter(name, [n], max_tokens=30, arrival_s=100.0 + n) for n, name in enumerate("abb")]
    plain = sequence([9], max_tokens=30, arrival_s=110.0)
    made.add(*first, plain)
    made.step()
    urgent = with_adapter("c", [7], priority=50, arrival_s=made.clock())
    made.add(urgent)
    made.step()
    assert running(made) == ["c", "a", ""], "the slot whose last holder came last, and nobody else's"
    assert [each.num_preemptions for each in (*first, plain)] == [0, 1, 1, 0]
    made.run()
    for each in (*first, plain, urgent):
        prompt = each.token_ids[: each.num_prompt_tokens]
        assert made.outputs[each.sequence_id] == expected_output(prompt, each.stop.max_tokens or 0)


def test_an_adapter_that_a_higher_priority_holds_too_keeps_its_slot() -> None:
    made = harness(1, "a", "b")
    made.add(with_adapter("a", [1], max_tokens=30), with_adapter("a", [2], priority=50, max_tokens=20))
    made.step()
    made.add(waiting := with_adapter("b", [3], priority=50, arrival_s=made.clock()))
    made.step()
    assert running(made) == ["a", "a"]
    made.run(lambda: waiting.slot >= 0)
    assert [each.adapter for each in made.scheduler.roster.waiting] == ["a"], "once the other had ended"
    made.run()


def test_nobody_gives_a_slot_up_for_what_finds_no_blocks_even_then() -> None:
    made = harness(1, "a", "b", num_blocks=16)
    made.add(sequence(list(range(40)), priority=50, max_tokens=20), with_adapter("a", [2], max_tokens=20))
    made.run(lambda: running(made) == ["", "a"])
    made.step()
    made.add(with_adapter("b", list(range(50, 80)), priority=50, arrival_s=made.clock()))
    made.step()
    assert running(made) == ["", "a"] and made.scheduler.roster.num_preemptions == 0
    made.run()


def test_adapters_that_are_large_together_give_way_one_after_the_other() -> None:
    made = harness(3, "a", "b", max_bytes=4)
    made.scheduler.add_adapter("big", 3)
    for number, name in enumerate("aab"):
        made.add(with_adapter(name, [number], max_tokens=30, arrival_s=100.0 + number))
    made.step()
    made.add(with_adapter("big", [9], priority=1, arrival_s=made.clock()))
    made.step()
    assert running(made) == ["big", "a", "a"]
    made.run()


def test_an_adapter_that_is_not_there_ends_its_sequence() -> None:
    made = harness(1, "a")
    unknown = with_adapter("x", [1])
    made.add(unknown)
    made.run()
    terminal = made.ended[unknown.sequence_id].terminal
    assert terminal.reason is FinishReason.ERROR and terminal.error is not None
    assert (terminal.error.code, terminal.error.reason) == ("NOT_FOUND", "ADAPTER_NOT_FOUND")


def test_an_unloaded_adapter_leaves_no_cached_prefix_behind() -> None:
    made, prompt = harness(2, "a", "b"), list(range(1, 20))
    for name in ("a", "b", "a"):
        made.add(with_adapter(name, prompt))
        made.run()
    assert [ended.terminal.usage.cached_tokens for ended in made.ended.values()] == [0, 0, 16]
    made.scheduler.forget_adapter("a")
    made.scheduler.add_adapter("a", 1)
    for name in ("a", "b"):
        made.add(with_adapter(name, prompt))
        made.run()
    assert [ended.terminal.usage.cached_tokens for ended in made.ended.values()][3:] == [0, 16]
    stored, removed = made.scheduler.kv.pool.take_changes()
    assert not set(stored) & set(removed)


def test_long_runs_with_preemptions_and_few_slots_keep_every_promise() -> None:
    """Integrity is checked after every step: slots, holders and what sequences believe agree."""
    for overlap in (False, True):
        rng = random.Random(3)
        made = harness(2, *"abcd", num_blocks=16, overlap=overlap)
        sequences = [
            with_adapter(name, [rng.randrange(500) for _ in range(rng.randrange(1, 40))],
                         max_tokens=rng.randrange(1, 24),
                         priority=rng.randrange(3))
            if name else sequence([rng.randrange(500)], max_tokens=9)
            for name in rng.choices(["", *"abcd"], k=60)
        ]  # fmt: skip
        for each in sequences:
            made.add(each)
            made.step()
        made.run()
        assert made.scheduler.roster.num_preemptions > 0
        for each in sequences:
            prompt = each.token_ids[: each.num_prompt_tokens]
            assert made.outputs[each.sequence_id] == expected_output(prompt, each.stop.max_tokens or 0)
        assert not made.scheduler.roster.adapters._num_holders
