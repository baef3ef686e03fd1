"""The real stack as processes on loopback, with a proxy on every connection between tiers.

One gateway, two tokenizer tiers, two model tiers; each may be killed, stopped and started again on its ports.
"""

import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.chaos.processes import Held, held, scrape, until_idle
from tests.chaos.wall_clock import WallClock
from tests.e2e.tier_processes import TierProcesses
from tests.fakes.background import in_background
from tests.fakes.proxy import Proxy
from tests.waiting import wait_for, wait_until_serving
from tokenwire.addresses import free_ports
from tokenwire.invariants import BROKEN

STEP_MS = 10
SLACK_DESCRIPTORS, SLACK_THREADS = 12, 6
"""What comes and goes by itself: connections that are tried again, resolvers, pools that grow to their bound."""


@dataclass
class Member:
    """A tier's process, and how it is started."""

    tier: str
    module: str
    port: int
    metrics_port: int
    flags: tuple[str, ...]
    environ: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None
    before: Held | None = None
    """What it held when all was well."""

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    @property
    def runs(self) -> bool:
        return self.process is not None and self.process.poll() is None


class ChaosStack:
    """Processes, proxies and what they should hold."""

    def __init__(self, tiers: TierProcesses, proxies: ExitStack, folder: Path, model_flags: tuple[str, ...]) -> None:
        ports = free_ports(11)
        self._tiers = tiers
        models, tokenizers = ports[0:2], ports[2:4]
        self.gateway_port, self.http_port = ports[4:6]
        self.to_models = [proxies.enter_context(in_background(Proxy(port))) for port in models]
        self.to_tokenizers = [proxies.enter_context(in_background(Proxy(port))) for port in tokenizers]
        model_targets = ",".join(proxy.target for proxy in self.to_models)
        tokenizer_targets = ",".join(proxy.target for proxy in self.to_tokenizers)
        self.models = [
            Member("model", "tests.chaos.faulty_engine", port, metrics, ("--model", str(folder), *model_flags))
            for port, metrics in zip(models, ports[6:8], strict=True)
        ]
        self.tokenizers = [
            Member("tokenizer", "tests.chaos.hanging", port, metrics,
                   ("--check-invariants", "--model", str(folder), "--model-targets", model_targets))
            for port, metrics in zip(tokenizers, ports[8:10], strict=True)
        ]  # fmt: skip
        flags = ("--check-invariants", "--http-port", str(self.http_port), "--tokenizer-targets", tokenizer_targets)
        self.gateway = Member("gateway", "gateway", self.gateway_port, ports[10], flags)

    @property
    def members(self) -> list[Member]:
        return [*self.models, *self.tokenizers, self.gateway]

    @property
    def proxies(self) -> list[Proxy]:
        return [*self.to_models, *self.to_tokenizers]

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.gateway_port}"

    @property
    def http_url(self) -> str:
        return f"http://127.0.0.1:{self.http_port}"

    def start(self, member: Member) -> None:
        """As what watches over processes would do once one is gone."""
        ports = ("--port", str(member.port), "--metrics-port", str(member.metrics_port))
        member.process = self._tiers.start(member.module, *ports, *member.flags, **member.environ)

    def start_all(self) -> None:
        for member in self.members:
            self.start(member)
        for member in self.members:
            wait_until_serving(f"127.0.0.1:{member.port}", member.process, self._tiers.logs)
        wait_for(self.is_whole)

    def note(self) -> None:
        """Remember what everyone holds now."""
        for member in self.members:
            member.before = held(member.pid)

    def check_nothing_is_left(self) -> None:
        """No request, stream or block in any tier, and no more descriptors and threads than before. AssertionError.

        Nor may a tier have said that something does not add up.
        """
        assert BROKEN not in self.logs(), [line for line in self.logs().splitlines() if BROKEN in line][:5]
        for member in self.members:
            assert member.runs, f"{member.tier} tier ended\n{self._tiers.logs()[-4000:]}"
            until_idle(member.tier, member.metrics_port)
            before = member.before
            assert before is not None

            def settled(member: Member = member, before: Held = before) -> bool:
                now = held(member.pid)
                return (
                    now.descriptors <= before.descriptors + SLACK_DESCRIPTORS
                    and now.threads <= before.threads + SLACK_THREADS
                    and now.processes == before.processes
                )

            try:
                wait_for(settled, 20)
            except AssertionError:
                raise AssertionError(f"{member.tier} tier held {before} and now {held(member.pid)}") from None

    def restore(self) -> None:
        """Heal every connection, wake who was stopped, start who is gone, and wait until all have found each other."""
        for proxy in self.proxies:
            proxy.heal()
        for member in self.members:
            if member.runs:
                member.signal(signal.SIGCONT)
            else:
                self.start(member)
        wait_for(self.is_whole)

    def is_whole(self) -> bool:
        """Everyone is connected to everyone."""
        try:
            return scrape(self.gateway.metrics_port)['tokenizer_sessions{state="ready"}'] == 2 and all(
                scrape(tokenizer.metrics_port)['model_replicas{state="ready"}'] == 2 for tokenizer in self.tokenizers
            )
        except (OSError, KeyError):
            return False

    def logs(self) -> str:
        return self._tiers.logs()


@contextmanager
def chaos_stack(
    folder: Path, logs: Path, *model_flags: str, clocks: Sequence[WallClock] = (), **environ: str
) -> Iterator[ChaosStack]:
    """Started and serving. `model_flags`, `environ`: the model tiers'. `clocks`: the members', in their order."""
    with TierProcesses(logs) as tiers, ExitStack() as proxies:
        stack = ChaosStack(tiers, proxies, folder, model_flags)
        for member in stack.models:
            member.environ.update(environ)
        for member, clock in zip(stack.members, clocks, strict=False):
            member.environ.update(clock.environ)
        try:
            stack.start_all()
            yield stack
        finally:
            for member in stack.members:
                if member.runs:
                    member.signal(signal.SIGCONT)
