"""The policies in simulated time: what prefix routing gains, and that several routers do not herd."""

from typing import Any

from benchmarks.routing import Figures, TierModel, simulate
from tokenizer_svc.policies import policy_of


def figures(policy: str, workload: str, num_routers: int = 4, **options: Any) -> Figures:
    return simulate(
        lambda: policy_of(policy, 0.5), workload, num_replicas=4, num_routers=num_routers, seconds=4, seed=1, **options
    )


def test_the_same_seed_gives_the_same_figures() -> None:
    assert figures("prefix-cache", "system prompts") == figures("prefix-cache", "system prompts")


def test_conversations_find_what_they_said_before() -> None:
    prefix, least = figures("prefix-cache", "chat"), figures("least-load", "chat")
    assert prefix.hit_rate > least.hit_rate + 0.15
    assert prefix.ttft_mean_ms < least.ttft_mean_ms * 0.7
    affinity = figures("session-affinity", "chat")
    assert affinity.hit_rate > least.hit_rate + 0.15


def test_a_hot_document_does_not_pile_up_at_the_tier_that_has_it() -> None:
    hot = figures("prefix-cache", "hot document", rate=1.5)
    assert hot.hit_rate > 0.8
    assert hot.busy > 0.8, "every tier has its part"
    assert hot.ttft_p99_ms < 3 * figures("power-of-two", "hot document", rate=1.5).ttft_p99_ms


def test_several_routers_with_old_reports_herd_by_least_load_and_not_by_two_choices() -> None:
    old = TierModel(lag_s=0.2)
    alone = figures("least-load", "unique", num_routers=1, model=old)
    herd = figures("least-load", "unique", num_routers=8, model=old)
    assert herd.ttft_mean_ms > alone.ttft_mean_ms * 2
    for policy in ("power-of-two", "prefix-cache"):
        assert figures(policy, "unique", num_routers=8, model=old).ttft_mean_ms < herd.ttft_mean_ms * 0.6
