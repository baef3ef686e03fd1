"""Lines to whoever watches a command that serves. A full disk, or a reader that has gone, stops nobody."""

import os
import sys

import click


def say(text: str = "", *, err: bool = False) -> None:
    """Print a line. One that cannot be written is left out."""
    try:
        click.echo(text, err=err)
    except OSError:
        pass


def forget_unwritten() -> None:
    """Throw away what could not be written, which Python would try again at its end and fail for."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
