"""`tokenwire chat`: one question, or a conversation line by line with streamed answers."""

import importlib
import sys
from importlib.util import find_spec
from typing import Any

import click

from tokenwire.cli.answers import show_json, show_stream
from tokenwire.cli.options import (
    connected,
    generation_options,
    given_options,
    json_option,
    stats_option,
    target_option,
    text_argument,
)
from tokenwire.client import CallOptions, Client, Message
from tokenwire.errors import TokenwireError
from tokenwire.visible import visible

if find_spec("readline"):
    importlib.import_module("readline")  # gives input() its line editing and history; not on every platform

HELP = """\
/reset          forget the conversation
/system TEXT    say what the assistant should be, and forget the conversation
/help           this list
/quit, /exit    leave, as Ctrl-D does
Ctrl-C stops an answer."""


@click.command()
@click.argument("message", required=False)
@target_option
@generation_options
@click.option("--system", default="", help="What the assistant should be.")
@stats_option
@json_option
def chat(message: str | None, target: str, system: str, stats: bool, as_json: bool, **options: Any) -> None:
    """Talk with a model. With MESSAGE ("-" for standard input): print its answer and leave."""
    given = given_options(options, as_json=as_json)
    with connected(target) as client:
        conversation = Conversation(client, given, system, stats)
        if message is None:
            if as_json:
                raise click.UsageError("--json needs a MESSAGE")
            conversation.run()
            return
        conversation.messages.append(Message("user", text_argument(message)))
        with client.chat(conversation.messages, **given) as stream:
            if as_json:
                show_json(stream.outputs())
                return
            _, speed = show_stream(stream)
        if stats:
            click.echo(str(speed), err=True)


class Conversation:
    """What was said, and the loop that goes on with it."""

    def __init__(self, client: Client, options: CallOptions, system: str, stats: bool) -> None:
        self.client = client
        self.options = options
        self.stats = stats
        self.messages: list[Message] = []
        self.begin(system)

    def begin(self, system: str) -> None:
        """Forget everything but what the assistant should be."""
        self.system = system
        self.messages = [Message("system", system)] if system else []

    def run(self) -> None:
        """Read lines until the input ends. An error ends its answer, not the conversation, except the first."""
        self.client.models()  # a gateway that is not there is told before anything is typed
        interactive = sys.stdin.isatty()
        if interactive:
            click.echo("Type a message; /help lists the commands. Ctrl-C stops an answer, /quit or Ctrl-D leaves.")
        while True:
            try:
                line = input("> " if interactive else "").strip()
            except EOFError:
                if interactive:
                    click.echo()
                return
            except KeyboardInterrupt:
                click.echo("\n(Ctrl-D leaves)")
                continue
            if line in ("/quit", "/exit"):
                return
            if line.startswith("/"):
                self.command(line)
            elif line:
                self.answer(line)

    def command(self, line: str) -> None:
        """Obey one /command."""
        word, _, rest = line.partition(" ")
        match word:
            case "/reset":
                self.begin(self.system)
                click.echo("(forgotten)")
            case "/system":
                self.begin(rest.strip())
                click.echo("(forgotten)" if self.system else "(forgotten, and no system message)")
            case "/help":
                click.echo(HELP)
            case _:
                click.echo(f"{word} is no command here; /help lists them", err=True)

    def answer(self, line: str) -> None:
        """Stream one answer. What came before Ctrl-C stays in the conversation; after an error the turn is dropped."""
        asked = [*self.messages, Message("user", line)]
        said: list[str] = []
        try:
            with self.client.chat(asked, **self.options) as stream:
                try:
                    _, speed = show_stream(stream, said)
                    if self.stats:
                        click.secho(f"({speed})", dim=True, err=True)
                except KeyboardInterrupt:
                    click.echo(" (stopped)")
        except TokenwireError as error:
            click.echo("\n" + visible(str(error), keep="\n\t"), err=True)
            return
        self.messages = [*asked, Message("assistant", "".join(said))]
