"""`tokenwire up` and `tokenwire demo`: the tiers as processes of this machine, from download to drain.

Prints what to do next; the processes are `processes.py`'s business.
"""

import asyncio
import os
import signal
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import nullcontext
from typing import Any, TypeVar

import click

from tokenwire.cli.answers import Speed, for_terminal
from tokenwire.cli.examples import QUESTION, embedding_examples, examples
from tokenwire.cli.log_stream import show_line
from tokenwire.cli.models import store_with_bars
from tokenwire.cli.one_key import one_key
from tokenwire.cli.processes import TierGroup
from tokenwire.cli.replicas import with_replicas
from tokenwire.cli.saying import forget_unwritten, say
from tokenwire.cli.tiers import (
    LOOPBACK,
    Tier,
    UpSettings,
    caller_tls,
    reachable,
    require_installed,
    tiers_of,
    with_ports,
)
from tokenwire.client import AsyncClient, ModelCard, TextDelta
from tokenwire.errors import Internal, Unauthenticated
from tokenwire.model_catalog import DEFAULT_MODEL
from tokenwire.models import served_name
from tokenwire.version import __version__

F = TypeVar("F", bound=Callable[..., Any])

STILL_STARTING_S = 10.0
"""How often a slow start says that it goes on."""
FIRST_TOKEN_TIMEOUT_S = 120.0
DEMO_TOKENS = 128
INTERRUPTED = 130
"""Exit status: 128 and SIGINT."""


def port_option(flag: str, default: int, variable: str, help: str) -> Callable[[F], F]:
    """An option for a port, which the tier's own environment variable gives as well."""
    return click.option(
        flag, type=click.IntRange(0, 65535), default=default, show_default=True, envvar=variable, help=help
    )


MODEL_OPTIONS = (
    click.option(
        "--model", envvar="TOKENWIRE_MODEL_MODEL", default=DEFAULT_MODEL, show_default=True,
        help="A name from `tokenwire models list`, a folder, a .gguf file or a hub id.",
    ),
    click.option(
        "--engine", type=click.Choice(["torch", "mock"]), envvar="TOKENWIRE_MODEL_ENGINE", default="torch",
        show_default=True, help="What runs the model; mock answers nonsense, without torch.",
    ),
    click.option(
        "--model-replicas", type=click.IntRange(1, 64), default=1, show_default=True,
        help="Model tiers behind the tokenizer tier: one GPU each, or shares of the CPU's cores.",
    ),
    click.option(
        "--gateway-workers", type=click.IntRange(1, 256), envvar="TOKENWIRE_GATEWAY_WORKERS", default=1,
        show_default=True, help="Processes of the gateway, which share its ports.",
    ),
    click.option(
        "--tokenizer-workers", type=click.IntRange(1, 256), envvar="TOKENWIRE_TOKENIZER_WORKERS", default=1,
        show_default=True, help="Processes of the tokenizer tier.",
    ),
    click.option(
        "--drain-timeout", "drain_timeout_s", type=click.FloatRange(min=0), default=30.0, show_default=True,
        help="Seconds that running requests get to finish at the end.",
    ),
)  # fmt: skip
DTYPES = click.Choice(["auto", "float32", "bfloat16", "float16"])
UP_OPTIONS = (
    click.option("--dtype", type=DTYPES, envvar="TOKENWIRE_MODEL_DTYPE", help="Number format; absent: tier's choice."),
    click.option(
        "--host", envvar="TOKENWIRE_GATEWAY_HOST", default="127.0.0.1", show_default=True,
        help="Where the gateway listens; the other tiers stay on the loopback.",
    ),
    click.option(
        "--insecure", is_flag=True, envvar="TOKENWIRE_GATEWAY_INSECURE",
        help="Let others reach the gateway, which asks nobody who they are.",
    ),
    click.option(
        "--make-key", is_flag=True, envvar="TOKENWIRE_UP_MAKE_KEY",
        help="Ask callers for the key in TOKENWIRE_API_KEY, or for a new one that is printed, where no setting of the "
        "gateway says who may call and --insecure is not given.",
    ),
    click.option(
        "--tls", "tls_folder", type=click.Path(exists=True, file_okay=False), metavar="FOLDER",
        help="TLS on every hop, with what `tokenwire certs make FOLDER` wrote; between tiers both sides show one.",
    ),
    port_option("--port", 50051, "TOKENWIRE_GATEWAY_PORT", "Gateway, gRPC; 0: any free one."),
    port_option("--http-port", 8080, "TOKENWIRE_GATEWAY_HTTP_PORT", "Gateway, HTTP; 0: any free one."),
    port_option("--tokenizer-port", 50052, "TOKENWIRE_TOKENIZER_PORT", "Tokenizer tier; 0: any free one."),
    port_option("--model-port", 50053, "TOKENWIRE_MODEL_PORT", "Model tier; 0: any. Replicas: the next free."),
    port_option("--gateway-metrics-port", 9464, "TOKENWIRE_GATEWAY_METRICS_PORT", "Gateway's metrics; 0: off."),
    port_option("--tokenizer-metrics-port", 9465, "TOKENWIRE_TOKENIZER_METRICS_PORT", "Tokenizer's metrics; 0: off."),
    port_option("--model-metrics-port", 9466, "TOKENWIRE_MODEL_METRICS_PORT", "Model tier's metrics; 0: off."),
)  # fmt: skip


def options(*added: Callable[[F], F]) -> Callable[[F], F]:
    """Several options as one decorator, in the order given."""

    def add(command: F) -> F:
        for option in reversed(added):
            command = option(command)
        return command

    return add


class UpCommand(click.Command):
    """Says of an unknown option where the settings of tiers are given."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As every command, with a hint in the error."""
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            variable = f"TOKENWIRE_MODEL_{error.option_name.lstrip('-').replace('-', '_').upper()}"
            hint = f"settings of tiers are taken from their environment, such as {variable}"
            message = f"{error.message.rstrip('.')}; {hint}."
            raise click.NoSuchOption(error.option_name, message, error.possibilities, error.ctx) from None


@click.command(cls=UpCommand)
@options(*MODEL_OPTIONS, *UP_OPTIONS)
def up(make_key: bool, **given: Any) -> None:
    """Start the model, tokenizer and gateway tiers here, and serve until Ctrl-C.

    Every other setting of a tier is taken from its environment, TOKENWIRE_<TIER>_<SETTING>; `python -m gateway --help`
    and its like list them.
    """
    settings = prepared(UpSettings(**{**given, "dtype": given["dtype"] or "", "tls_folder": given["tls_folder"] or ""}))
    with one_key(os.environ) if make_key and not settings.insecure else nullcontext():
        run(settings, serve)


@click.command()
@options(*MODEL_OPTIONS)
@click.option("--dtype", type=DTYPES, default="float32", show_default=True, help="Number format.")
@click.argument("question", default=QUESTION)
def demo(question: str, **given: Any) -> None:
    """Start everything on free ports, stream the answer to QUESTION, print its speed, and stop.

    Greedy and in float32 unless told otherwise: the default model's 4-bit weights bring the default question close to
    a tie, which a coarser number format can tip.
    """
    os.environ.setdefault("TOKENWIRE_LOG", "warning")
    settings = prepared(UpSettings(**given))
    run(settings, lambda running: answer(running, question))


def prepared(settings: UpSettings) -> UpSettings:
    """Everything that can be wrong before a process is started: what is installed, the ports, the model's files."""
    require_installed(settings.engine)
    settings = with_replicas(with_ports(settings), os.environ)
    with store_with_bars() as store:
        store.resolve(settings.model)
    return settings


class Up:
    """One run of all tiers."""

    def __init__(self, settings: UpSettings) -> None:
        self.settings = settings
        self.began_s = time.monotonic()
        host = reachable(settings.host)
        self.grpc_target = f"{host}:{settings.port}"
        self.http_target = f"{host}:{settings.http_port}"
        self.api_key = os.environ.get("TOKENWIRE_API_KEY", "")
        self.asks_who = bool(self.api_key)
        """Whether the gateway asks its callers who they are, as far as is known."""
        self.stop = asyncio.Event()
        """Set by the first SIGINT, SIGTERM or SIGHUP."""
        self._main: asyncio.Task[None] | None = None

    async def run(self, work: "Callable[[Up], Coroutine[Any, Any, None]]") -> None:
        """Start, wait until ready, do `work` or stop when asked to, drain. Raises Unavailable when a tier ends."""
        self._main = asyncio.current_task()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            asyncio.get_running_loop().add_signal_handler(number, self._on_signal, number)
        tiers, limit_s = tiers_of(self.settings), self.settings.drain_timeout_s
        say(f"Tokenwire {__version__}, model {self.settings.model}: starting")
        async with TierGroup(tiers, show_line, limit_s) as group:
            await self._until_stopped(group, self._become_ready(group))
            await self._until_stopped(group, work(self))
            await group.drain(self._on_stopped)

    def _on_signal(self, number: signal.Signals) -> None:
        if self.stop.is_set() and self._main is not None:
            say(f"{number.name} again: leaving at once", err=True)
            self._main.cancel()
            return
        self.stop.set()
        say(f"\n{number.name}: draining, gateway first; once more to leave at once", err=True)

    async def _until_stopped(self, group: TierGroup, work: Coroutine[Any, Any, None]) -> None:
        """Run `work` until it is done, or a signal came. Raises what it raises, or Unavailable when a tier ends."""
        if self.stop.is_set():
            work.close()
            return
        tasks = [asyncio.create_task(each) for each in (work, group.wait_died(), wait(self.stop))]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            group.raise_if_died()
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _become_ready(self, group: TierGroup) -> None:
        """Wait for the tiers, then for a token, or a vector, that went through all of them."""
        waiting = asyncio.create_task(self._say_still_starting(group))
        try:
            await group.wait_ready(self._on_ready)
        finally:
            waiting.cancel()
        try:
            async with self.client() as client:
                if only_embed(await client.models()):
                    await client.embed("Hello", timeout_s=FIRST_TOKEN_TIMEOUT_S)
                    say(f"  first embedding served after {self.seconds():.1f} s")
                    return
                (output,) = await client.generate("Hello", max_tokens=1, timeout_s=FIRST_TOKEN_TIMEOUT_S).outputs()
        except Unauthenticated as error:
            if self.api_key:
                raise
            self.asks_who = True
            say(f"  {error}; set TOKENWIRE_API_KEY, and `tokenwire up` tries with it")
            return
        if output.error is not None:
            raise output.error
        say(f"  first token served after {self.seconds():.1f} s")

    def client(self) -> AsyncClient:
        """A client of this gateway."""
        return AsyncClient(self.grpc_target, api_key=self.api_key, tls=caller_tls(self.settings))

    async def _say_still_starting(self, group: TierGroup) -> None:
        while True:
            await asyncio.sleep(STILL_STARTING_S)
            say(f"  still starting ({self.seconds():.0f} s)", err=True)

    def _on_ready(self, tier: Tier, seconds: float) -> None:
        say(f"  {tier.name:<9} ready after {seconds:4.1f} s  {tier.target}")

    def _on_stopped(self, tier: Tier, in_time: bool) -> None:
        say(f"  {tier.name:<9} {'drained' if in_time else 'killed: it did not end within its time'}")

    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self.began_s


def run(settings: UpSettings, work: Callable[[Up], Coroutine[Any, Any, None]]) -> None:
    """Run to the end; a second signal ends it with the status that shells give for Ctrl-C."""
    try:
        asyncio.run(Up(settings).run(work))
    except asyncio.CancelledError:
        raise SystemExit(INTERRUPTED) from None
    finally:
        forget_unwritten()


async def wait(event: asyncio.Event) -> None:
    """Wait for an event; a coroutine of its own so that it can stand beside others."""
    await event.wait()


async def serve(running: Up) -> None:
    """Say where to go, then wait for the end."""
    names, shown = [served_name(running.settings.model)], examples
    if running.api_key or not running.asks_who:
        async with running.client() as client:
            cards = await client.models()
        names = [card.name for card in cards] or names
        shown = embedding_examples if only_embed(cards) else examples
    tls_folder = running.settings.tls_folder
    http_url = f"{'https' if tls_folder else 'http'}://{running.http_target}"
    say(f"\nServing {', '.join(names)}:  gRPC {running.grpc_target}  HTTP {http_url}\n")
    if metrics := metrics_addresses(running.settings):
        say(f"Metrics: {metrics}\n")
    for title, command in shown(
        names[0], running.grpc_target, running.http_target, tls_folder, asks_who=running.asks_who
    ):
        say(f"{title}:\n  {command}\n")
    say("Ctrl-C drains and stops.")
    await wait(running.stop)


def only_embed(cards: Sequence[ModelCard]) -> bool:
    """Whether there are models, and all of them give vectors and no text."""
    return bool(cards) and all("embed" in c.capabilities and "generate" not in c.capabilities for c in cards)


def metrics_addresses(settings: UpSettings) -> str:
    """Where each tier's metrics are, for people; empty when all are off."""
    ports = (
        ("gateway", reachable(settings.host), settings.gateway_metrics_port),
        ("tokenizer", LOOPBACK, settings.tokenizer_metrics_port),
        *((name, LOOPBACK, replica.metrics_port) for name, replica in settings.models.items()),
    )
    return "  ".join(f"{tier} http://{host}:{port}/metrics" for tier, host, port in ports if port)


async def answer(running: Up, question: str) -> None:
    """Stream one greedy answer to the terminal, and say how fast it was."""
    click.echo(f"\n> {question}")
    async with running.client() as client:
        speed = Speed()
        async with client.chat(question, temperature=0, max_tokens=DEMO_TOKENS) as stream:
            async for event in stream:
                if isinstance(event, TextDelta):
                    speed.add(event.num_tokens)
                    click.echo(for_terminal(event.text), nl=False)
            click.echo()
            (output,) = await stream.outputs()
    if output.error is not None:
        raise output.error
    if not output.text.strip():
        raise Internal("the answer is empty")
    click.echo(f"({speed})\n")
