"""Settings of a tier that chooses among tiers below: when one is passed over, and how much is tried again."""

from dataclasses import dataclass

from tokenwire.settings import UpstreamSettings, setting


@dataclass(frozen=True, kw_only=True)
class RoutingSettings(UpstreamSettings):
    """What the gateway and the tokenizer tier have in common here."""

    discovery_interval_s: float = setting(
        5.0,
        "how often dns: names are resolved, and file: lists and what xds: targets were told looked at again",
        minimum=0.1,
        maximum=3600,
    )
    breaker_failures: int = setting(
        5, "failures in a row after which a tier below is passed over for a while; 0: never", minimum=0
    )
    max_ejected_share: float = setting(
        0.5,
        "most of the connected tiers below that are passed over at once, rounded up; never all",
        minimum=0,
        maximum=1,
    )
    retry_budget: int = setting(
        256,
        "requests that failed before their first token and may be tried again; each takes one, five that end well put "
        "one back; 0: none is",
        minimum=0,
        maximum=1_000_000,
    )
