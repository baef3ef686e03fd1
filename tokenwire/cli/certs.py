"""`tokenwire certs`: a certificate authority for development, with a certificate for each tier and for clients."""

import importlib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from tokenwire.errors import FailedPrecondition

folder_argument = click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
days_option = click.option(
    "--days", type=click.FloatRange(min=0, min_open=True), default=90.0, show_default=True, help="How long they hold."
)


@click.group()
def certs() -> None:
    """Make certificates for development. The CA's key lies beside them: not for production."""


@certs.command()
@folder_argument
@click.option("--host", "hosts", multiple=True, help="A name or address that tiers are reached by; may be repeated.")
@days_option
def make(folder: Path, hosts: tuple[str, ...], days: float) -> None:
    """Make a CA in FOLDER, where it has none, and certificates for gateway, tokenizer, model and client.

    Run again, it replaces the certificates, which running tiers take over with the next connection.
    """
    written = authority_module().make_all(folder, hosts=hosts, days=days)
    for path in written:
        click.echo(path)
    click.echo(f"\nServe with them: tokenwire up --tls {folder}", err=True)


@certs.command()
@folder_argument
@click.argument("name")
@click.option("--host", "hosts", multiple=True, help="A name or address it is good for; may be repeated.")
@click.option("--uri", "uris", multiple=True, help="An identity such as spiffe://example/a; may be repeated.")
@days_option
def issue(folder: Path, name: str, hosts: tuple[str, ...], uris: tuple[str, ...], days: float) -> None:
    """Sign one more certificate with the CA in FOLDER: NAME.pem and NAME-key.pem, common name NAME."""
    click.echo(authority_module().DevelopmentCa.load(folder).issue(name, names=hosts, uris=uris, days=days))


def authority_module() -> Any:
    """What signs; loaded for these commands alone. Raises FailedPrecondition where `cryptography` is missing."""
    if find_spec("cryptography") is None:
        message = "making certificates needs the package cryptography: pip install 'tokenwire[certs]'"
        raise FailedPrecondition(message, reason="NOT_INSTALLED")
    return importlib.import_module("tokenwire.development_ca")
