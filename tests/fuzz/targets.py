"""What is fuzzed: each target takes any bytes and lets typed errors pass, nothing else.

A target is a context manager, so that it can set up once what all inputs share, and gives a function that raises where
a promise is broken: an error without a type, a sequence with two ends, a session that does not end.
"""

import asyncio
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from fastapi import Request
from google.protobuf import json_format
from google.protobuf.message import DecodeError

from gateway.http import openai_chat, openai_completions
from gateway.http.body import read_body
from gateway.settings import GatewaySettings
from model_svc.grammar.compiler import verdict_on
from model_svc.grammar.vocabulary import load_vocabulary
from tests.fakes.live_model_tier import live_model_tier
from tests.fakes.live_tokenizer_tier import live_tokenizer_tier
from tests.fakes.tokenizers_trained import write_folder
from tests.fakes.whole_stack import VOCAB_SIZE
from tests.fuzz.served import Served
from tokenizer_svc.chat_template import ChatTemplate
from tokenizer_svc.wire import conversation_from_wire
from tokenwire.constraints import Constraint, ConstraintForm
from tokenwire.errors import TokenwireError
from tokenwire.sampling import refuse
from tokenwire.v1 import model_pb2, tokenizer_pb2

CORPUS = Path(__file__).parent / "corpus"
"""Inputs that mean something, and those that once broke something, by target."""
SEPARATOR = b"\0\0NEXT\0"
"""Between the frames of a session, and between the parts of other inputs."""
MAX_CONTEXT_TOKENS = 64
"""Small, so that whatever is asked of the mock engine ends soon."""

Take = Callable[[bytes], None]


@contextmanager
def token_session() -> Iterator[Take]:
    """Frames of a token Session, to the model tier over the mock engine."""
    with asyncio.Runner() as runner:
        tier = live_model_tier(mock_step_ms=0.0, mock_max_context_tokens=MAX_CONTEXT_TOKENS)
        live = runner.run(tier.__aenter__())

        def take(data: bytes) -> None:
            frames = frames_of(data, model_pb2.ModelServiceSessionRequest)
            runner.run(Served(frames).by(live.tier.servicer.Session))
            runner.run(live.until_idle())

        try:
            yield take
        finally:
            runner.run(tier.__aexit__(None, None, None))


@contextmanager
def text_session() -> Iterator[Take]:
    """Frames of a text Session, to the tokenizer tier over a model tier with the mock engine."""
    with asyncio.Runner() as runner, tempfile.TemporaryDirectory() as work:
        folder = write_folder(Path(work) / "tiny-model")
        options = {"mock_step_ms": 0.0, "mock_max_context_tokens": MAX_CONTEXT_TOKENS, "mock_vocab_size": VOCAB_SIZE}
        model = live_model_tier(model=str(folder), **options)
        below = runner.run(model.__aenter__())
        tier = live_tokenizer_tier(folder, wait=False, model_targets=f"127.0.0.1:{below.port}")
        live = runner.run(tier.__aenter__())
        runner.run(live.until_ready(1))

        def take(data: bytes) -> None:
            frames = frames_of(data, tokenizer_pb2.SessionRequest)
            runner.run(Served(frames).by(live.server.servicer.Session))
            runner.run(live.until_idle())

        try:
            yield take
        finally:
            runner.run(tier.__aexit__(None, None, None))
            runner.run(model.__aexit__(None, None, None))


def frames_of(data: bytes, kind: Callable[..., Any]) -> list[Any]:
    """Those up to the first that is none."""
    frames = []
    for part in data.split(SEPARATOR):
        frame = kind()
        try:
            frame.ParseFromString(part)
        except DecodeError:
            break
        frames.append(frame)
    return frames


@contextmanager
def chat_template() -> Iterator[Take]:
    """A template, and a Conversation as JSON."""

    def take(data: bytes) -> None:
        source, _, conversation = data.partition(SEPARATOR)
        with suppress(TokenwireError, json_format.ParseError, UnicodeDecodeError):
            template = ChatTemplate(source.decode(), special_tokens={"bos_token": "<s>", "eos_token": "</s>"})
            message = json_format.Parse(conversation.decode(), tokenizer_pb2.Conversation(), max_recursion_depth=20)
            template.render(conversation_from_wire(message))

    yield take


@contextmanager
def constraint() -> Iterator[Take]:
    """The name of a form, and its text; a choice's texts are lines."""
    with tempfile.TemporaryDirectory() as work:
        vocabulary = load_vocabulary(write_folder(Path(work)), VOCAB_SIZE)

    def take(data: bytes) -> None:
        name, _, text = data.partition(SEPARATOR)
        with suppress(TokenwireError, ValueError):  # ValueError: no form, no UTF-8
            form, decoded = ConstraintForm(name.decode()), text.decode()
            is_choice = form is ConstraintForm.CHOICE
            found = Constraint(form, texts=tuple(decoded.splitlines())) if is_choice else Constraint(form, decoded)
            refuse(found.violations())
            verdict_on(found, vocabulary)[0].take()

    yield take


class LetIn(Exception):
    """A body was understood, and its requests made."""


class Call:
    """As `HttpCall`; nothing is sent down."""

    def open(self, body: Any, requests: Any, model: str) -> Any:
        raise LetIn


@contextmanager
def openai_body() -> Iterator[Take]:
    """The name of an endpoint, and a body."""
    generation: Any = SimpleNamespace(settings=GatewaySettings())
    endpoints = {
        b"chat": (openai_chat.ChatBody, openai_chat._answer),
        b"completions": (openai_completions.CompletionBody, openai_completions._answer),
    }

    async def post(name: bytes, body: bytes) -> None:
        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body, "more_body": False}

        model, answer = endpoints[name]
        request = Request({"type": "http", "headers": [(b"content-type", b"application/json")]}, receive)
        await answer(generation, Call(), await read_body(request, model, generation.settings))  # type: ignore

    with asyncio.Runner() as runner:

        def take(data: bytes) -> None:
            name, _, body = data.partition(SEPARATOR)
            if name in endpoints:
                with suppress(TokenwireError, LetIn):
                    runner.run(post(name, body))

        yield take


TARGETS: dict[str, Callable[[], AbstractContextManager[Take]]] = {
    target.__name__: target for target in (token_session, text_session, chat_template, constraint, openai_body)
}
