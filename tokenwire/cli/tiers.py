"""Which processes `tokenwire up` starts: their modules, ports and flags. Starts nothing itself."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tokenwire.addresses import free_ports, is_free
from tokenwire.cli.ports import holder
from tokenwire.errors import FailedPrecondition
from tokenwire.tls import ClientTls

LOOPBACK = "127.0.0.1"
NEEDED_MODULES = ("fastapi", "grpc_health", "grpc_reflection", "jinja2", "prometheus_client", "tokenizers", "uvloop")
NEEDED_FOR_TORCH = ("safetensors", "torch", "transformers")


@dataclass(frozen=True, slots=True)
class Replica:
    """One of the model tiers. Empty values leave a setting to the tier and its environment."""

    port: int
    metrics_port: int = 0
    device: str = ""
    threads: int = 0


@dataclass(frozen=True, kw_only=True)
class UpSettings:
    """What `tokenwire up` was asked for. Empty texts leave a setting to the tier and its environment."""

    model: str
    dtype: str = ""
    engine: str = "torch"
    host: str = LOOPBACK
    insecure: bool = False
    port: int = 0
    http_port: int = 0
    tokenizer_port: int = 0
    model_port: int = 0
    gateway_metrics_port: int = 0
    tokenizer_metrics_port: int = 0
    model_metrics_port: int = 0
    drain_timeout_s: float = 30.0
    model_replicas: int = 1
    gateway_workers: int = 1
    tokenizer_workers: int = 1
    tls_folder: str = ""
    """What `tokenwire certs make` wrote; empty: the tiers speak without TLS."""
    replicas: tuple[Replica, ...] = ()
    """Where there are several, each one's place (see `replicas.py`); empty for a single one."""

    @property
    def models(self) -> dict[str, Replica]:
        """Every model tier by name: `model`, or `model-0`, `model-1` and so on."""
        if not self.replicas:
            return {"model": Replica(self.model_port, self.model_metrics_port)}
        return {f"model-{index}": replica for index, replica in enumerate(self.replicas)}


TOKENIZER_ENVIRON = (("GLIBC_TUNABLES", "glibc.malloc.tcache_count=512"),)
"""An encoding is some hundred small allocations; glibc keeps seven of a size at hand."""
SERVICE_PORTS = ("port", "http_port", "tokenizer_port", "model_port")
METRICS_PORTS = ("gateway_metrics_port", "tokenizer_metrics_port", "model_metrics_port")


@dataclass(frozen=True, slots=True)
class Tier:
    """One process: `python -m module arguments`, ready when health at `target` says so."""

    name: str
    module: str
    target: str
    arguments: tuple[str, ...]
    environ: tuple[tuple[str, str], ...] = ()
    """What this process's own environment does not say otherwise."""
    tls: ClientTls | None = None
    """How its health is asked for."""


def require_installed(engine: str) -> None:
    """Raise FailedPrecondition naming what the tiers need and this environment lacks."""
    needed = NEEDED_MODULES + (NEEDED_FOR_TORCH if engine == "torch" else ())
    missing = [name for name in needed if find_spec(name) is None]
    if missing:
        raise FailedPrecondition(
            f"the tiers need what is not installed here ({', '.join(missing)}): pip install 'tokenwire[all]'",
            reason="NOT_INSTALLED",
        )


def with_ports(settings: UpSettings) -> UpSettings:
    """The same with each service port 0 replaced by a free one. Raises FailedPrecondition for a port that is taken."""
    for name in (*SERVICE_PORTS, *METRICS_PORTS):
        port = getattr(settings, name)
        host = settings.host if name in ("port", "http_port") else LOOPBACK
        if port and not is_free(port, host):
            flag = "--" + name.replace("_", "-")
            free = "0 takes any free one" if name in SERVICE_PORTS else "0 turns these metrics off"
            raise FailedPrecondition(
                f"{flag} {port} is in use by {holder(port)}: stop that process or give another port ({free})",
                reason="PORT_IN_USE",
            )
    wanted = [name for name in SERVICE_PORTS if getattr(settings, name) == 0]
    found: dict[str, Any] = dict(zip(wanted, free_ports(len(wanted)), strict=True))
    return replace(settings, **found)


def reachable(host: str) -> str:
    """Where this machine reaches what listens on `host`."""
    return {"0.0.0.0": LOOPBACK, "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)


def tiers_of(settings: UpSettings) -> list[Tier]:
    """The processes, in the order in which they are drained. Only the gateway listens on `host`."""
    drain = ("--drain-timeout-s", str(settings.drain_timeout_s))
    models = [model_tier(settings, name, replica) for name, replica in settings.models.items()]
    tokenizer_target = f"{LOOPBACK}:{settings.tokenizer_port}"
    gateway = Tier(
        "gateway", "gateway", f"{reachable(settings.host)}:{settings.port}",
        (
            *given("--host", settings.host), *given("--port", settings.port),
            *given("--http-port", settings.http_port), "--metrics-port", str(settings.gateway_metrics_port),
            *given("--tokenizer-targets", tokenizer_target), *(("--insecure",) if settings.insecure else ()), *drain,
            "--workers", str(settings.gateway_workers),
            "--sessions-per-target", str(sessions_for(settings.tokenizer_workers)),
            *server_tls(settings, "gateway", ask=False), *upstream_tls(settings, "gateway"),
        ),
        tls=caller_tls(settings),
    )  # fmt: skip
    tokenizer = Tier(
        "tokenizer", "tokenizer_svc", tokenizer_target,
        (
            *given("--host", LOOPBACK), *given("--port", settings.tokenizer_port),
            "--metrics-port", str(settings.tokenizer_metrics_port), *given("--model", settings.model),
            *given("--model-targets", ",".join(model.target for model in models)), *drain,
            "--workers", str(settings.tokenizer_workers),
            *server_tls(settings, "tokenizer"), *upstream_tls(settings, "tokenizer"),
        ),
        TOKENIZER_ENVIRON, tls=caller_tls(settings),
    )  # fmt: skip
    return [gateway, tokenizer, *models]


def sessions_for(num_workers: int) -> int:
    """How many sessions reach that many workers, over which the kernel spreads connections at random."""
    return 1 if num_workers == 1 else 4 * num_workers


def model_tier(settings: UpSettings, name: str, replica: Replica) -> Tier:
    """One model tier."""
    return Tier(
        name, "model_svc", f"{LOOPBACK}:{replica.port}",
        (
            *given("--host", LOOPBACK), *given("--port", replica.port), "--metrics-port", str(replica.metrics_port),
            *given("--model", settings.model), *given("--dtype", settings.dtype), *given("--engine", settings.engine),
            *given("--device", replica.device), *given("--threads", replica.threads),
            "--drain-timeout-s", str(settings.drain_timeout_s), *server_tls(settings, "model"),
        ),
        tls=caller_tls(settings),
    )  # fmt: skip


def server_tls(settings: UpSettings, name: str, *, ask: bool = True) -> Sequence[str]:
    """Flags for the certificate that a tier shows, and whether its callers must show one of the same CA."""
    if not settings.tls_folder:
        return ()
    folder = Path(settings.tls_folder)
    shown = ("--tls-certificate", str(folder / f"{name}.pem"), "--tls-key", str(folder / f"{name}-key.pem"))
    return (*shown, "--tls-client-ca", str(folder / "ca.pem")) if ask else shown


def upstream_tls(settings: UpSettings, name: str) -> Sequence[str]:
    """Flags for calling the tier below with this tier's own certificate."""
    if not settings.tls_folder:
        return ()
    folder = Path(settings.tls_folder)
    shown = folder / f"{name}.pem", folder / f"{name}-key.pem"
    return (
        "--upstream-tls-ca", str(folder / "ca.pem"),
        "--upstream-tls-certificate", str(shown[0]), "--upstream-tls-key", str(shown[1]),
    )  # fmt: skip


def caller_tls(settings: UpSettings) -> ClientTls | None:
    """How `tokenwire up` itself and clients call a tier."""
    if not settings.tls_folder:
        return None
    folder = Path(settings.tls_folder)
    return ClientTls(str(folder / "ca.pem"), str(folder / "client.pem"), str(folder / "client-key.pem"))


def given(flag: str, value: object) -> Sequence[str]:
    """The flag with its value, or nothing where the value is empty."""
    return (flag, str(value)) if value not in ("", 0) else ()
