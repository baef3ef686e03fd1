"""The command group `tokenwire`. A typed error becomes one line and exit status 1; commands live in their own files."""

from typing import Any

import click
import grpc

from tokenwire.cli.adapters import adapters
from tokenwire.cli.certs import certs
from tokenwire.cli.chat import chat
from tokenwire.cli.conformance import conformance
from tokenwire.cli.doctor import doctor
from tokenwire.cli.generate import count_tokens, detokenize, generate, tokenize
from tokenwire.cli.keys import keys
from tokenwire.cli.models import models
from tokenwire.cli.options import given_tls, target_option
from tokenwire.cli.up import demo, up
from tokenwire.client.options import refuse_timeout
from tokenwire.errors import TokenwireError
from tokenwire.health import is_serving
from tokenwire.status import from_rpc_error
from tokenwire.version import __version__
from tokenwire.visible import visible


class TypedErrorGroup(click.Group):
    """Answers a TokenwireError as click answers its own exceptions."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except TokenwireError as error:
            retry = "" if error.retry_after_s is None else f" (try again in {error.retry_after_s:g} s)"
            raise click.ClickException(visible(f"{error.message}{retry}", keep="\n\t")) from None


@click.group(cls=TypedErrorGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="tokenwire")
def cli() -> None:
    """Serve language models over gRPC, and talk with them."""


@cli.command()
@target_option
@click.option("--timeout", "timeout_s", type=float, default=5.0, show_default=True, help="Seconds to wait.")
def health(target: str, timeout_s: float) -> None:
    """Ask any tier whether it can answer: exit 0 if so, else 1."""
    refuse_timeout(timeout_s)
    try:
        serving = is_serving(target, timeout_s, given_tls())
    except grpc.RpcError as error:
        raise from_rpc_error(error) from None
    click.echo("SERVING" if serving else "NOT_SERVING")
    if not serving:
        raise SystemExit(1)


for command in (
    up,
    demo,
    chat,
    generate,
    tokenize,
    detokenize,
    count_tokens,
    models,
    adapters,
    conformance,
    doctor,
    certs,
    keys,
):
    cli.add_command(command)

if __name__ == "__main__":
    cli(prog_name="tokenwire")
