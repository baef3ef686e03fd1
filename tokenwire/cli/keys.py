"""`tokenwire keys`: API keys in a gateway's identity file. Only their hashes are kept; a key is printed once."""

import datetime
import sys
from pathlib import Path
from typing import Any

import click

from tokenwire.errors import InvalidRequest
from tokenwire.identity_file import add_key, hash_of, new_key, read_identity_file, remove_key

file_argument = click.argument("file", type=click.Path(dir_okay=False, path_type=Path))


@click.group()
def keys() -> None:
    """API keys of a gateway that is started with --identity-file FILE, which follows the file as it runs."""


@keys.command()
@file_argument
@click.argument("name")
@click.option("--tenant", required=True, help='Whose key it is; "*": the caller names the tenant.')
@click.option("--model", "models", multiple=True, help="A model or adapter it may use; repeatable; absent: all.")
@click.option("--max-priority", type=int, default=0, show_default=True, help="Highest priority it may ask for.")
@click.option("--admin", is_flag=True, help="It may read metrics and channelz as well.")
@click.option("--days", type=click.FloatRange(min=0, min_open=True), help="How long it holds; absent: until revoked.")
@click.option("--sha256", help="Hash of a key that exists, from `tokenwire keys hash`; absent: a new one is made.")
def new(
    file: Path,
    name: str,
    tenant: str,
    models: tuple[str, ...],
    max_priority: int,
    admin: bool,
    days: float | None,
    sha256: str | None,
) -> None:
    """Add a key called NAME to FILE, which is made where it is not there, and print it: it is shown only now."""
    key = "" if sha256 else new_key()
    entry: dict[str, Any] = {"name": name, "sha256": sha256 or hash_of(key), "tenant": tenant}
    if models:
        entry["models"] = list(models)
    if max_priority:
        entry["max_priority"] = max_priority
    if admin:
        entry["admin"] = True
    if days is not None:
        ends = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=days)
        entry["expires"] = ends.isoformat(timespec="seconds")
    _with_file(lambda: add_key(file, entry))
    if key:
        click.echo(key)


@keys.command("hash")
def hash_key() -> None:
    """Print the hash of a key that is read from standard input, so that it stands in no command line."""
    key = sys.stdin.readline().strip()
    if not key:
        raise click.UsageError("give the key on standard input")
    click.echo(hash_of(key))


@keys.command("list")
@file_argument
def list_keys(file: Path) -> None:
    """Print name, tenant, models, highest priority and end of each key in FILE."""
    found = _with_file(lambda: read_identity_file(file))
    for grant in found.keys.values():
        models = ",".join(sorted(grant.models)) if grant.models is not None else "all models"
        ends = "no end"
        if grant.expires_s is not None:
            ends = datetime.datetime.fromtimestamp(grant.expires_s, datetime.UTC).isoformat(timespec="seconds")
        admin = "  admin" if grant.admin else ""
        click.echo(f"{grant.name}  {grant.tenant}  {models}  {grant.max_priority}  {ends}{admin}")


@keys.command()
@file_argument
@click.argument("name")
def revoke(file: Path, name: str) -> None:
    """Take the key called NAME out of FILE; it is refused within about a second, on open sessions too."""
    _with_file(lambda: remove_key(file, name))


def _with_file(work: Any) -> Any:
    """What reads and writes, its file errors in one line. Raises InvalidRequest."""
    try:
        return work()
    except OSError as error:
        raise InvalidRequest(f"{error.filename}: {error.strerror}") from None
