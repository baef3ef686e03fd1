"""Requests that are wrong, made from what is right: each with how it must be answered. A table and a generator."""

import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jsonschema

from gateway.http.openapi import description
from tokenwire.v1 import common_pb2, gateway_pb2, tokenizer_pb2

DOCUMENT = description()
GOOD: dict[str, tuple[str, dict[str, Any]]] = {
    "/v1/chat/completions": ("ChatBody", {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 2}),
    "/v1/completions": ("CompletionBody", {"prompt": "hello", "max_tokens": 2}),
    "/generate": ("GenerateBody", {"inputs": ["hello"], "max_tokens": 2}),
}
JUNK: tuple[Any, ...] = ("junk", -(2**70), 0.5, True, [[]], {"a": []})
JSON = "application/json"
MAX_BODY_BYTES = 65_536
"""What the gateway has to be set to."""


@dataclass(frozen=True)
class HttpCase:
    """One wrong request."""

    name: str
    path: str
    content: bytes
    content_type: str = JSON
    statuses: tuple[int, ...] = (400,)


def field_cases() -> Iterator[HttpCase]:
    """Each field of each body with each junk that the description does not allow there."""
    for path, (schema, body) in GOOD.items():
        validator = jsonschema.Draft202012Validator(
            {"$ref": f"#/components/schemas/{schema}", "components": DOCUMENT["components"]}
        )
        for field, (number, junk) in itertools.product(
            DOCUMENT["components"]["schemas"][schema]["properties"], enumerate(JUNK)
        ):
            wrong = {**body, field: junk}
            if not validator.is_valid(wrong):
                yield HttpCase(f"{path} {field} {number}", path, json.dumps(wrong).encode())


def body_cases() -> Iterator[HttpCase]:
    """What is no JSON object at all, or said to be something else."""
    for path, (_, body) in GOOD.items():
        whole = json.dumps(body).encode()
        for cut in range(0, len(whole), 9):
            yield HttpCase(f"{path} cut at {cut}", path, whole[:cut])
        for name, content in {
            "two": whole + whole,
            "list": b"[]",
            "text": b'"x"',
            "null": b"null",
            "NaN": whole[:-1] + b', "temperature": NaN}',
            "infinity": whole[:-1] + b', "temperature": Infinity}',
            "UTF-16": whole.decode().encode("utf-16"),
            "lone surrogate": whole.replace(b"hello", b"\\ud800"),
            "bad UTF-8": whole.replace(b"hello", b"\xff\xfe"),
            "deep": b'{"stop":' + b"[" * 20_000 + b"]" * 20_000 + b"}",
            "long number": whole[:-1] + b', "seed": ' + b"9" * 10_000 + b"}",
        }.items():
            yield HttpCase(f"{path} {name}", path, content)
        yield HttpCase(f"{path} no type", path, whole, "", (415,))
        yield HttpCase(f"{path} form", path, whole, "application/x-www-form-urlencoded", (415,))
        yield HttpCase(f"{path} too large", path, b" " * 70_000 + whole, statuses=(413,))


def http_cases() -> list[HttpCase]:
    """All of them."""
    return [*field_cases(), *body_cases()]


@dataclass(frozen=True)
class GrpcCase:
    """One wrong call: the method, its message as bytes, and the status."""

    name: str
    method: str
    message: bytes
    codes: tuple[str, ...] = ("INVALID_ARGUMENT",)


def option_changes() -> Iterator[tuple[str, Callable[[common_pb2.GenerationOptions], None]]]:
    """What makes options wrong."""
    nan, inf = float("nan"), float("inf")
    values: dict[str, tuple[Any, ...]] = {
        "sampling.temperature": (-1, nan, inf, -inf),
        "sampling.top_p": (0, 1.5, -1, nan),
        "sampling.min_p": (-0.5, 2, nan),
        "sampling.repetition_penalty": (0, -1, 1e9, nan, inf),
        "sampling.presence_penalty": (-3, 3, nan),
        "sampling.frequency_penalty": (-3, 3, nan),
        "stop.max_tokens": (0, 2**32 - 1),
        "stop.min_tokens": (2**32 - 1,),
        "output.logprobs": (21, 2**31),
        "output.prompt_logprobs": (21,),
        "num_choices": (129, 2**31),
    }
    for path, wrong in values.items():
        for value in wrong:
            group, _, field = path.rpartition(".")

            def change(
                options: common_pb2.GenerationOptions, group: str = group, field: str = field, value: Any = value
            ) -> None:
                setattr(getattr(options, group) if group else options, field, value)

            yield f"{path} = {value}", change
    yield "too many stop strings", lambda options: options.stop.stop_strings.extend(["a"] * 17)
    yield "an empty stop string", lambda options: options.stop.stop_strings.append("")
    yield "a long stop string", lambda options: options.stop.stop_strings.append("a" * 2000)
    yield "a stop id outside", lambda options: options.stop.stop_token_ids.append(2**31)
    yield "too many stop ids", lambda options: options.stop.stop_token_ids.extend(range(100))
    yield "a bias outside", lambda options: options.sampling.logit_bias.update({5: 1000.0})
    yield "a biased id outside", lambda options: options.sampling.logit_bias.update({2**31: 1.0})
    yield "an allowed id outside", lambda options: options.sampling.allowed_token_ids.append(2**31)
    yield "an empty ban", lambda options: options.sampling.banned_sequences.add()


def grpc_cases() -> list[GrpcCase]:
    """All of them."""
    return [*_options(), *_prompts(), *_contexts(), *_texts(), *_bytes()]


def good_generate() -> gateway_pb2.GenerateRequest:
    request = gateway_pb2.GenerateRequest(prompts=[gateway_pb2.Prompt(text="hello")])
    request.options.stop.max_tokens = 2
    return request


def good_chat() -> gateway_pb2.ChatRequest:
    request = gateway_pb2.ChatRequest()
    request.conversation.messages.add(role="user", content="hello")
    request.options.stop.max_tokens = 2
    return request


def _options() -> Iterator[GrpcCase]:
    for method, make in (("Generate", good_generate), ("Chat", good_chat)):
        for name, change in option_changes():
            request = make()
            change(request.options)
            yield GrpcCase(f"{method}: {name}", method, request.SerializeToString())


def _prompts() -> Iterator[GrpcCase]:
    prompts = {
        "none": [],
        "empty": [gateway_pb2.Prompt()],
        "empty text": [gateway_pb2.Prompt(text="")],
        "empty ids": [gateway_pb2.Prompt(token_ids=common_pb2.TokenIds())],
        "ids outside": [gateway_pb2.Prompt(token_ids=common_pb2.TokenIds(ids=[1, 2**31]))],
        "too long": [gateway_pb2.Prompt(text="hello " * 20_000)],
        "too many": [gateway_pb2.Prompt(text="a")] * 2000,
    }
    for name, given in prompts.items():
        request = gateway_pb2.GenerateRequest(prompts=given)
        yield GrpcCase(f"prompts: {name}", "Generate", request.SerializeToString())
    no_messages = gateway_pb2.ChatRequest()
    yield GrpcCase("chat: no conversation", "Chat", no_messages.SerializeToString())
    for name, value in {"template arguments": "[]", "documents": "{"}.items():
        chat = good_chat()
        if name == "documents":
            chat.conversation.documents_json.append(value)
        else:
            chat.conversation.template_arguments_json = value
        yield GrpcCase(f"chat: {name}", "Chat", chat.SerializeToString())
    tools = good_chat()
    tools.conversation.tools.add(name="", parameters_json="{}")
    yield GrpcCase("chat: a tool without a name", "Chat", tools.SerializeToString())
    tools = good_chat()
    tools.conversation.tools.add(name="f", parameters_json="no JSON")
    yield GrpcCase("chat: parameters that are no JSON", "Chat", tools.SerializeToString())


def _contexts() -> Iterator[GrpcCase]:
    for name, context in {
        "long id": common_pb2.RequestContext(request_id="x" * 200),
        "id with a line feed": common_pb2.RequestContext(request_id="a\nb"),
        "high priority": common_pb2.RequestContext(priority=101),
        "low priority": common_pb2.RequestContext(priority=-101),
        "long tenant": common_pb2.RequestContext(tenant="x" * 300),
    }.items():
        request = good_generate()
        request.context.CopyFrom(context)
        yield GrpcCase(f"context: {name}", "Generate", request.SerializeToString())
    for name, change in {"model": {"model": "nobody"}, "salt": {"cache_salt": "x" * 300}}.items():
        request = good_generate()
        request.MergeFrom(gateway_pb2.GenerateRequest(**change))
        codes = ("NOT_FOUND",) if name == "model" else ("INVALID_ARGUMENT",)
        yield GrpcCase(f"unknown {name}", "Generate", request.SerializeToString(), codes)


def _texts() -> Iterator[GrpcCase]:
    yield GrpcCase("tokenize: nothing", "Tokenize", tokenizer_pb2.TokenizeRequest().SerializeToString())
    ids = tokenizer_pb2.DetokenizeRequest(sequences=[common_pb2.TokenIds(ids=[2**31])])
    yield GrpcCase("detokenize: id outside", "Detokenize", ids.SerializeToString())
    yield GrpcCase("count: nothing", "CountTokens", tokenizer_pb2.CountTokensRequest().SerializeToString())
    empty = tokenizer_pb2.ApplyChatTemplateRequest().SerializeToString()
    yield GrpcCase("template: nothing", "ApplyChatTemplate", empty)
    yield GrpcCase("embed: nothing", "Embed", tokenizer_pb2.EmbedRequest().SerializeToString())


def _bytes() -> Iterator[GrpcCase]:
    """What is no message of the type: cut in the middle of a field, or with a text that is no UTF-8."""
    for method, message in (("Generate", good_generate()), ("Chat", good_chat())):
        whole = message.SerializeToString()
        for cut in (1, 3, 5):
            yield GrpcCase(f"{method}: cut {cut} from the end", method, whole[:-cut])
        yield GrpcCase(f"{method}: no UTF-8", method, whole.replace(b"hello", b"\xff\xfe\xff\xfe\xff"))
        yield GrpcCase(f"{method}: group that never ends", method, b"\x0b" * 40)
        yield GrpcCase(f"{method}: wire type 7", method, b"\x0f\x01")
        yield GrpcCase(f"{method}: too large", method, b"\x7a\xff\xff\x7f" + b"x" * 2_097_151, ("RESOURCE_EXHAUSTED",))
