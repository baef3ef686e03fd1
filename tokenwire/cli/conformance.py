"""`tokenwire conformance`: the contract's cases against a server, or against a client program."""

import asyncio
import json
import shlex
import signal
import threading
from collections.abc import AsyncIterator
from dataclasses import asdict

import click
from click.core import ParameterSource

from tokenwire.cli.options import KEPT, given_tls, json_option, model_option, target_option
from tokenwire.conformance.client_run import CLIENT_CASES, run_client
from tokenwire.conformance.results import Result, UnknownCase, nothing_tried
from tokenwire.conformance.server_run import SERVER_CASES, run_server

OF_CLIENTS = ("command", "names", "only_list", "timeout_s", "as_json")
MARKS = {"pass": "pass", "fail": "FAIL", "skip": "skip"}


@click.command()
@target_option
@click.option("--client", "command", metavar="COMMAND", help="Drive this client program instead of trying a server.")
@click.option(
    "--case", "names", multiple=True, metavar="NAME", help="Only this case, or those that begin so up to a dot."
)
@click.option("--list", "only_list", is_flag=True, help="Say what the cases are, and try none.")
@click.option(
    "--timeout", "timeout_s", type=click.FloatRange(min=0.1), default=30.0, show_default=True, help="Seconds a case."
)
@model_option
@json_option
def conformance(
    target: str,
    command: str | None,
    names: tuple[str, ...],
    only_list: bool,
    timeout_s: float,
    model: str,
    as_json: bool,
) -> None:
    """Try a server (--target), or a client program (--client), case by case, against the contract.

    Exit status 0 where nothing failed, and not everything was skipped. What a client program is told, and what it must
    tell: docs/conformance.md.
    """
    if command is not None:
        _refuse_what_is_of_servers()
        _refuse_bad_command(command)
    if only_list:
        _list(command is not None, as_json)
        return
    given = click.get_current_context().meta[KEPT]
    if command is None:
        running = run_server(
            target, api_key=given["api_key"], plaintext_key=given["plaintext_key"], tls=given_tls(),
            model=model, names=names, timeout_s=timeout_s,
        )  # fmt: skip
    else:
        running = run_client(command, names=names, timeout_s=timeout_s)
    try:
        results = asyncio.run(_show(running, as_json))
    except asyncio.CancelledError:
        raise SystemExit(128 + signal.SIGTERM) from None
    except UnknownCase as error:
        raise click.UsageError(str(error)) from None
    if nothing_tried(results):
        click.echo("nothing was tried: every case was skipped, and not all of them are optional", err=True)
    if nothing_tried(results) or any(result.outcome == "fail" for result in results):
        raise SystemExit(1)


def _refuse_what_is_of_servers() -> None:
    """The kit starts the server of a client program itself. What the environment says is said to all commands."""
    context = click.get_current_context()
    for parameter in context.command.params:
        given = context.get_parameter_source(str(parameter.name)) is ParameterSource.COMMANDLINE
        if given and parameter.name not in OF_CLIENTS:
            raise click.UsageError(f"{parameter.opts[0]} is of a server to try: leave it out with --client")


def _refuse_bad_command(command: str) -> None:
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise click.UsageError(f"--client {command!r} is no command: {error}") from None
    if not words:
        raise click.UsageError("--client needs a command")


async def _show(running: AsyncIterator[Result], as_json: bool) -> list[Result]:
    results: list[Result] = []
    task = asyncio.current_task()
    if task is not None and threading.current_thread() is threading.main_thread():  # what is driven is ended first
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    async for result in running:
        results.append(result)
        if as_json:
            click.echo(json.dumps(asdict(result), ensure_ascii=False))
        else:
            said = f": {result.reason}" if result.reason else ""
            click.echo(f"{MARKS[result.outcome]}  {result.name}{said}")
            if result.outcome == "fail":
                click.echo(f"      {result.shows}")
    if not as_json:
        counts = {outcome: sum(result.outcome == outcome for result in results) for outcome in MARKS}
        click.echo(f"{counts['pass']} passed, {counts['fail']} failed, {counts['skip']} skipped")
    return results


def _list(of_clients: bool, as_json: bool) -> None:
    cases = [(case.name, case.shows) for case in (CLIENT_CASES if of_clients else SERVER_CASES)]
    for name, shows in cases:
        click.echo(json.dumps({"name": name, "shows": shows}) if as_json else f"{name:28} {shows}")
