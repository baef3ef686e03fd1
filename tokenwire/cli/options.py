"""Options that several commands share, and how a command reaches the gateway."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import click

from tokenwire.client import CallOptions, Client
from tokenwire.client.clients import DEFAULT_TARGET
from tokenwire.errors import Unavailable
from tokenwire.status import TLS_FAILED
from tokenwire.tls import ClientTls

F = TypeVar("F", bound=Callable[..., Any])

KEPT = "tokenwire.connection"
"""Where the context of a command keeps how to connect."""


def _keep(ctx: click.Context, parameter: click.Parameter, value: str) -> str:
    ctx.meta.setdefault(KEPT, {})[parameter.name] = value
    return value


def given_tls() -> ClientTls | None:
    """TLS as this command was told to use it; None: without. Raises UsageError for half of it."""
    given = click.get_current_context().meta[KEPT]
    certificate, key, name = given["tls_certificate"], given["tls_key"], given["tls_name"]
    if not given["tls_ca"]:
        if certificate or key or name:
            raise click.UsageError("TLS needs --tls-ca: a file of CAs, or system")
        return None
    return ClientTls(given["tls_ca"], certificate, key, name)


TARGET_OPTIONS = (
    click.option(
        "--target", envvar="TOKENWIRE_TARGET", default=DEFAULT_TARGET, show_default=True, show_envvar=True,
        metavar="HOST:PORT", help="The gateway's gRPC address.",
    ),
    click.option(
        "--api-key", envvar="TOKENWIRE_API_KEY", default="", show_envvar=True, expose_value=False, callback=_keep,
        metavar="KEY", help="Who calls: an API key or a JWT. Other users of this machine see what stands here.",
    ),
    click.option(
        "--plaintext-key", envvar="TOKENWIRE_PLAINTEXT_KEY", is_flag=True, show_envvar=True, expose_value=False,
        callback=_keep, help="Send the key to other machines without TLS too, where something else encrypts the way.",
    ),
)  # fmt: skip
TLS_OPTIONS = (
    click.option(
        "--tls-ca", envvar="TOKENWIRE_TLS_CA", default="", show_envvar=True, expose_value=False, callback=_keep,
        metavar="FILE", help='Use TLS, and trust these CAs; "system": those of this machine.',
    ),
    click.option(
        "--tls-certificate", envvar="TOKENWIRE_TLS_CERTIFICATE", default="", show_envvar=True, expose_value=False,
        callback=_keep, metavar="FILE", help="Certificate to show.",
    ),
    click.option(
        "--tls-key", envvar="TOKENWIRE_TLS_KEY", default="", show_envvar=True, expose_value=False, callback=_keep,
        metavar="FILE", help="Its key.",
    ),
    click.option(
        "--tls-name", envvar="TOKENWIRE_TLS_NAME", default="", show_envvar=True, expose_value=False, callback=_keep,
        metavar="NAME", help="Name that the server's certificate must have, where it is not the host in --target.",
    ),
)  # fmt: skip
"""How: what `given_tls` finds."""


def target_option(command: F) -> F:
    """Add the options of every command that calls a gateway."""
    for option in reversed((*TARGET_OPTIONS, *TLS_OPTIONS)):
        command = option(command)
    return command


def tls_options(command: F) -> F:
    """Add the options of a command that calls another tier, and names it by an option of its own."""
    for option in reversed(TLS_OPTIONS):
        command = option(command)
    return command


model_option = click.option("--model", default="", help="Name of the model, where there are several.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
stats_option = click.option("--stats", is_flag=True, help="Print counts and speed on standard error.")

GENERATION_OPTIONS = (
    model_option,
    click.option("--adapter", default="", help="Name of a loaded LoRA adapter."),
    click.option("--max-tokens", type=int, help="Most tokens to generate."),
    click.option("--temperature", type=float, help="0 takes the likeliest token each time."),
    click.option("--top-k", type=int, help="Keep this many likeliest tokens; 0 keeps all."),
    click.option("--top-p", type=float, help="Keep the likeliest tokens up to this probability."),
    click.option("--min-p", type=float, help="Drop tokens less likely than this times the likeliest."),
    click.option("--repetition-penalty", type=float, help="Above 1 makes tokens of prompt and output less likely."),
    click.option("--presence-penalty", type=float, help="Above 0 makes tokens of the output less likely; at most 2."),
    click.option("--frequency-penalty", type=float, help="The same per occurrence; at most 2."),
    click.option("--min-tokens", type=int, help="No end before this many tokens."),
    click.option("--seed", type=int, help="Equal seeds give equal answers."),
    click.option("--stop", multiple=True, help="End before this text; may be given several times."),
    click.option(
        "--logprobs", type=int, help="Show each token's log-probability and this many likeliest; with --json."
    ),
    click.option("--priority", type=int, help="Higher runs first; from -100 to 100."),
    click.option("--tenant", default="", help="Whose share of the machine is used."),
    click.option("--cache-salt", default="", help="Share cached prefixes with requests of equal salt only."),
    click.option("--timeout", "timeout_s", type=float, help="Seconds after which to take what there is."),
)
"""Named as the client's options are; an absent one is left to the model."""


def generation_options(command: F) -> F:
    """Add the options of `generate` and `chat`."""
    for option in reversed(GENERATION_OPTIONS):
        command = option(command)
    return command


def given_options(values: dict[str, Any], *, as_json: bool) -> CallOptions:
    """What was given on the command line, as the client takes it. Raises UsageError for what would not be shown."""
    if values["logprobs"] is not None and not as_json:
        raise click.UsageError("--logprobs needs --json")
    options: Any = {name: value for name, value in values.items() if value not in (None, "", ())}
    call_options: CallOptions = options
    return call_options


@contextmanager
def connected(target: str) -> Iterator[Client]:
    """A client; a gateway that is not there is answered with what to do."""
    given = click.get_current_context().meta[KEPT]
    with Client(target, api_key=given["api_key"], tls=given_tls(), plaintext_key=given["plaintext_key"]) as client:
        try:
            yield client
        except Unavailable as error:
            if error.reason != TLS_FAILED and "failed to connect" in error.message.lower():
                message = f"nothing answers at {target}: start it with `tokenwire up`"
                raise Unavailable(f"{message}, or name another gateway with --target") from None
            raise


def text_argument(text: str) -> str:
    """The argument itself, or standard input for "-"."""
    return sys.stdin.read() if text == "-" else text
