"""`tokenwire adapters`: load, unload and list the LoRA adapters of a running model tier."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click
import grpc

from tokenwire.channels import sync_channel
from tokenwire.cli.options import given_tls, tls_options
from tokenwire.client.options import refuse_timeout
from tokenwire.errors import Unavailable
from tokenwire.status import from_rpc_error
from tokenwire.v1 import model_pb2, model_pb2_grpc

DEFAULT_MODEL_TARGET = "127.0.0.1:50053"

target_option = click.option(
    "--model-target", default=DEFAULT_MODEL_TARGET, show_default=True,
    metavar="HOST:PORT", help="The model tier's gRPC address; with several tiers, ask each.",
)  # fmt: skip
timeout_option = click.option(
    "--timeout", "timeout_s", type=float, default=300.0, show_default=True,
    help="Seconds to wait; the tier goes on with what it began.",
)  # fmt: skip


@contextmanager
def asking(target: str) -> Iterator[grpc.Channel]:
    """A channel to a model tier; what it answers becomes a typed error, and one that is not there says what to do."""
    with sync_channel(target, given_tls()) as channel:
        try:
            yield channel
        except grpc.RpcError as rpc_error:
            error = from_rpc_error(rpc_error)
            if error.reason == Unavailable.default_reason and "failed to connect" in error.message.lower():
                raise Unavailable(f"no model tier answers at {target}: name one with --model-target") from None
            raise error from None


def admin(channel: grpc.Channel) -> Any:
    """The operator's service of a model tier."""
    return model_pb2_grpc.ModelAdminServiceStub(channel)  # type: ignore[no-untyped-call]


@click.group()
def adapters() -> None:
    """LoRA adapters of a running model tier: load, unload, list."""


@adapters.command()
@click.argument("name")
@click.argument("path")
@target_option
@tls_options
@timeout_option
def load(name: str, path: str, model_target: str, timeout_s: float) -> None:
    """Load the PEFT adapter in the folder PATH, below the tier's adapter_folder, to be asked for as NAME."""
    refuse_timeout(timeout_s)
    with asking(model_target) as channel:
        admin(channel).LoadAdapter(model_pb2.LoadAdapterRequest(name=name, path=path), timeout=timeout_s)
    click.echo(f"loaded {name}")


@adapters.command()
@click.argument("name")
@target_option
@tls_options
@timeout_option
def unload(name: str, model_target: str, timeout_s: float) -> None:
    """Take NAME back: nothing new may ask for it, and it is gone when the last request that uses it has ended."""
    refuse_timeout(timeout_s)
    with asking(model_target) as channel:
        admin(channel).UnloadAdapter(model_pb2.UnloadAdapterRequest(name=name), timeout=timeout_s)
    click.echo(f"unloaded {name}")


@adapters.command("list")
@target_option
@tls_options
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def list_adapters(model_target: str, as_json: bool) -> None:
    """Print the names of the adapters that can be asked for, one a line."""
    with asking(model_target) as channel:
        stub = model_pb2_grpc.ModelServiceStub(channel)  # type: ignore[no-untyped-call]
        info = stub.GetModelInfo(model_pb2.GetModelInfoRequest(), timeout=10.0)
    names = list(info.model.adapters)
    click.echo(json.dumps({"model": info.model.name, "adapters": names}) if as_json else "\n".join(names))
