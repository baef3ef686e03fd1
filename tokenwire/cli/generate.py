"""`tokenwire generate`, `tokenize`, `detokenize` and `count-tokens`: single requests to a gateway."""

import json
from typing import Any

import click

from tokenwire.cli.answers import for_terminal, show_json, show_outputs, show_stream
from tokenwire.cli.options import (
    connected,
    generation_options,
    given_options,
    json_option,
    model_option,
    stats_option,
    target_option,
    text_argument,
)
from tokenwire.client import Message

special_option = click.option("--special/--no-special", default=True, help="Add what the tokenizer puts around a text.")
split_option = click.option("--split-special", "split", is_flag=True, help="Read special tokens in TEXT as plain text.")


@click.command()
@click.argument("prompts", nargs=-1, required=True, metavar="PROMPT...")
@target_option
@generation_options
@click.option(
    "--num-choices",
    type=int,
    help="Outputs per prompt; equal ones where the model's default is greedy, so give --temperature.",
)
@click.option("--ignore-eos", is_flag=True, default=None, help="Go on past the model's end of text.")
@stats_option
@json_option
def generate(prompts: tuple[str, ...], target: str, stats: bool, as_json: bool, **options: Any) -> None:
    """Continue each PROMPT; "-" reads one from standard input. A single answer is printed as it comes."""
    given = given_options(options, as_json=as_json)
    texts = [text_argument(prompt) for prompt in prompts]
    with connected(target) as client, client.generate(*texts, **given) as stream:
        if as_json:
            show_json(stream.outputs())
        elif len(texts) > 1 or (options["num_choices"] or 1) > 1:
            show_outputs(stream.outputs())
        else:
            _, speed = show_stream(stream)
            if stats:
                click.echo(str(speed), err=True)


@click.command()
@click.argument("texts", nargs=-1, required=True, metavar="TEXT...")
@target_option
@model_option
@special_option
@split_option
@click.option("--offsets", is_flag=True, help="With --json: where each token starts and ends, in characters.")
@json_option
def tokenize(
    texts: tuple[str, ...], target: str, model: str, special: bool, split: bool, offsets: bool, as_json: bool
) -> None:
    """Print the token ids of each TEXT on a line of its own; "-" reads one from standard input."""
    if offsets and not as_json:
        raise click.UsageError("--offsets needs --json")
    with connected(target) as client:
        encodings = client.tokenize(
            *map(text_argument, texts),
            model=model,
            add_special_tokens=special,
            return_offsets=offsets,
            split_special_tokens=split,
        )
    if as_json:
        shown = {"token_ids": [list(encoding.token_ids) for encoding in encodings]}
        if offsets:
            shown["starts"] = [list(encoding.starts) for encoding in encodings]
            shown["ends"] = [list(encoding.ends) for encoding in encodings]
        click.echo(json.dumps(shown))
        return
    for encoding in encodings:
        click.echo(" ".join(map(str, encoding.token_ids)))


@click.command("count-tokens")
@click.argument("texts", nargs=-1, required=True, metavar="TEXT...")
@target_option
@model_option
@special_option
@split_option
@click.option("--chat", is_flag=True, help="Count each TEXT as a message of a user, in the chat template.")
@json_option
def count_tokens(
    texts: tuple[str, ...], target: str, model: str, special: bool, split: bool, chat: bool, as_json: bool
) -> None:
    """Print how many tokens each TEXT is, on a line of its own; "-" reads one from standard input."""
    given = [text_argument(text) for text in texts]
    with connected(target) as client:
        counts = client.count_tokens(
            *(() if chat else given),
            conversations=[[Message("user", text)] for text in given] if chat else (),
            model=model,
            add_special_tokens=special,
            split_special_tokens=split,
        )
    click.echo(json.dumps({"counts": counts}) if as_json else "\n".join(map(str, counts)))


@click.command()
@click.argument("token_ids", nargs=-1, required=True, type=click.IntRange(0, 2**32 - 1), metavar="TOKEN_ID...")
@target_option
@model_option
@click.option("--special", is_flag=True, help="Show special tokens.")
@json_option
def detokenize(token_ids: tuple[int, ...], target: str, model: str, special: bool, as_json: bool) -> None:
    """Print the text of the TOKEN_IDs."""
    with connected(target) as client:
        (text,) = client.detokenize(token_ids, model=model, skip_special_tokens=not special)
    click.echo(json.dumps({"text": text}, ensure_ascii=False) if as_json else for_terminal(text))
