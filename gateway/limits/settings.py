"""How the gateway is told what tenants may use."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gateway.identity.keyring import Keyring
from gateway.limits.limiter import Limiter
from gateway.limits.table import UsageTable
from tokenwire.identity_file import TenantLimits
from tokenwire.settings import setting
from tokenwire.worker_place import WorkerPlace

TABLE_NAME = "tenant-limits"


@dataclass(frozen=True, kw_only=True)
class LimitSettings:
    """What the gateway takes for it; the identity file has what holds for single tenants."""

    tenant_requests_per_s: float = setting(
        0.0, "prompts a second that each tenant may send, a second's worth at once; 0: no limit", minimum=0
    )
    tenant_tokens_per_min: float = setting(
        0.0, "tokens a minute, of prompts and outputs, that each tenant may use; 0: no limit", minimum=0
    )
    tenant_max_streams: int = setting(
        0, "outputs that each tenant may have generated at once, in all workers; 0: no limit", minimum=0
    )

    def limiter(
        self,
        keyring: Keyring | None,
        place: WorkerPlace | None,
        num_workers: int,
        on_refused: Callable[[str], None],
    ) -> Limiter | None:
        """What holds tenants to their limits; None where there are none, and no file that could say some."""
        defaults = TenantLimits(self.tenant_requests_per_s, self.tenant_tokens_per_min, self.tenant_max_streams)
        if keyring is None and not (defaults.requests_per_s or defaults.tokens_per_min or defaults.max_streams):
            return None
        path: Path | None = None if place is None else place.metrics_folder / TABLE_NAME
        table = UsageTable(path, worker=0 if place is None else place.number, num_workers=num_workers if place else 1)
        return Limiter(table, defaults, lambda: {} if keyring is None else keyring.tenants, on_refused)
