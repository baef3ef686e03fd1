"""Client values ↔ the gateway's messages: pure functions, shared by both clients. Does not know how calls are made."""

import hashlib
import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, SupportsIndex

from tokenwire.client.conversations import conversation_of, invalid
from tokenwire.client.events import (
    Encoding,
    Event,
    Finished,
    Message,
    ModelCard,
    Prompt,
    RenderedPrompt,
    TextDelta,
    TokenizerFiles,
)
from tokenwire.client.options import CallOptions, generation_options, refuse_bad_text, request_context
from tokenwire.embedding_wire import capability_names
from tokenwire.errors import FieldViolation, Internal, InvalidRequest
from tokenwire.parsed import ToolCall
from tokenwire.sampling import MAX_TOKEN_ID, refuse
from tokenwire.v1 import common_pb2, gateway_pb2, tokenizer_pb2
from tokenwire.wire import (
    context_to_wire,
    logprob_from_wire,
    options_to_wire,
    terminal_from_wire,
)

DEADLINE_GRACE_S = 2.0
"""How much longer than its request a call may take, so that the terminal event outruns the transport's own timer."""


@dataclass(frozen=True, slots=True)
class GenerationCall:
    """One streaming call: what is sent, and how what comes back is read."""

    request: Any
    request_id: str
    num_outputs: int
    """Terminal events to expect."""
    timeout_s: float | None
    """The transport's own limit."""
    events_of: Callable[[Any], list[Event]]


def generate_call(prompts: Sequence[Prompt], given: CallOptions) -> GenerationCall:
    """A call to Generate. Raises InvalidRequest."""
    if not prompts:
        raise InvalidRequest("prompts: none given; at least one text or sequence of token ids is needed")
    context, options = request_context(given), generation_options(given)
    request = gateway_pb2.GenerateRequest(
        context=context_to_wire(context),
        model=given.get("model", ""),
        prompts=[_prompt(prompt, f"prompts[{i}]") for i, prompt in enumerate(prompts)],
        options=options_to_wire(options),
        truncate=given.get("truncate", False),
        cache_salt=given.get("cache_salt", ""),
        split_special_tokens=given.get("split_special_tokens", False),
        truncation=_truncation(given),
    )
    return GenerationCall(
        request, context.request_id, len(prompts) * options.num_choices, _call_timeout_s(given), generate_events
    )


def chat_call(conversation: tokenizer_pb2.Conversation, given: CallOptions) -> GenerationCall:
    """A call to Chat. Raises InvalidRequest."""
    context, options = request_context(given), generation_options(given)
    request = gateway_pb2.ChatRequest(
        context=context_to_wire(context),
        model=given.get("model", ""),
        options=options_to_wire(options),
        truncate=given.get("truncate", False),
        cache_salt=given.get("cache_salt", ""),
        split_special_tokens=given.get("split_special_tokens", False),
        truncation=_truncation(given),
        conversation=conversation,
    )
    return GenerationCall(request, context.request_id, options.num_choices, _call_timeout_s(given), chat_events)


def text_request(
    input: Prompt | tokenizer_pb2.Conversation, given: CallOptions
) -> tuple[tokenizer_pb2.TextRequest, int]:
    """One request of a Session and how many outputs it has. Raises InvalidRequest."""
    context, options = request_context(given), generation_options(given)
    request = tokenizer_pb2.TextRequest(
        context=context_to_wire(context),
        model=given.get("model", ""),
        options=options_to_wire(options),
        truncate=given.get("truncate", False),
        cache_salt=given.get("cache_salt", ""),
        split_special_tokens=given.get("split_special_tokens", False),
        truncation=_truncation(given),
    )
    if isinstance(input, tokenizer_pb2.Conversation):
        request.conversation.CopyFrom(input)
    elif isinstance(input, str):
        refuse_bad_text("text", input)
        request.text = input
    else:
        request.token_ids.CopyFrom(token_ids_message(input, "token_ids"))
    return request, options.num_choices


def session_delta(text: str, num_tokens: int, choice: int, extras: tokenizer_pb2.Extras | None) -> TextDelta:
    """One row of a Session's frame, with what stands beside it."""
    if extras is None:
        return TextDelta(text, num_tokens, choice=choice)
    return _text_delta(text, num_tokens, 0, choice, extras)


def generate_events(response: gateway_pb2.GenerateResponse) -> list[Event]:
    """The events of one message of Generate: new text, the end, or both."""
    return _events(response, response.index)


def chat_events(response: gateway_pb2.ChatResponse) -> list[Event]:
    """The events of one message of Chat."""
    return _events(response, 0)


def tokenize_request(
    texts: Sequence[str],
    model: str,
    add_special_tokens: bool,
    return_offsets: bool,
    split_special_tokens: bool,
) -> tokenizer_pb2.TokenizeRequest:
    """A call to Tokenize. Raises InvalidRequest."""
    refuse_bad_text("model", model)
    for i, text in enumerate(texts):
        refuse_bad_text(f"texts[{i}]", text)
    return tokenizer_pb2.TokenizeRequest(
        model=model,
        texts=texts,
        add_special_tokens=add_special_tokens,
        return_offsets=return_offsets,
        split_special_tokens=split_special_tokens,
    )


def encodings(response: tokenizer_pb2.TokenizeResponse) -> list[Encoding]:
    """One encoding per text."""
    return [Encoding(tuple(e.token_ids), tuple(e.starts), tuple(e.ends)) for e in response.encodings]


def detokenize_request(
    sequences: Sequence[Sequence[int]],
    model: str,
    skip_special_tokens: bool,
    spaces_between_special_tokens: bool,
) -> tokenizer_pb2.DetokenizeRequest:
    """A call to Detokenize. Raises InvalidRequest."""
    refuse_bad_text("model", model)
    return tokenizer_pb2.DetokenizeRequest(
        model=model,
        sequences=[token_ids_message(ids, f"sequences[{i}]") for i, ids in enumerate(sequences)],
        skip_special_tokens=skip_special_tokens,
        spaces_between_special_tokens=spaces_between_special_tokens,
    )


def detokenized(response: tokenizer_pb2.DetokenizeResponse) -> list[str]:
    """One text per sequence."""
    return list(response.texts)


def apply_template_request(
    conversation: tokenizer_pb2.Conversation, model: str, tokenize: bool, split_special_tokens: bool
) -> tokenizer_pb2.ApplyChatTemplateRequest:
    """A call to ApplyChatTemplate. Raises InvalidRequest."""
    refuse_bad_text("model", model)
    return tokenizer_pb2.ApplyChatTemplateRequest(
        model=model, tokenize=tokenize, split_special_tokens=split_special_tokens, conversation=conversation
    )


def rendered(response: tokenizer_pb2.ApplyChatTemplateResponse) -> RenderedPrompt:
    """The prompt of a conversation."""
    return RenderedPrompt(response.text, tuple(response.token_ids))


def count_request(
    texts: Sequence[str],
    conversations: Sequence[Sequence[Message]],
    model: str,
    add_special_tokens: bool,
    split_special_tokens: bool,
) -> tokenizer_pb2.CountTokensRequest:
    """A call to CountTokens. Raises InvalidRequest."""
    refuse_bad_text("model", model)
    for i, text in enumerate(texts):
        refuse_bad_text(f"texts[{i}]", text)
    request = tokenizer_pb2.CountTokensRequest(
        model=model, texts=texts, add_special_tokens=add_special_tokens, split_special_tokens=split_special_tokens
    )
    request.conversations.extend(conversation_of(messages) for messages in conversations)
    return request


def counts(response: tokenizer_pb2.CountTokensResponse) -> list[int]:
    """Of each text, then of each conversation."""
    return [*response.texts, *response.conversations]


def tokenizer_request(model: str) -> tokenizer_pb2.GetTokenizerRequest:
    """A call to GetTokenizer. Raises InvalidRequest."""
    refuse_bad_text("model", model)
    return tokenizer_pb2.GetTokenizerRequest(model=model)


def tokenizer_files(responses: Sequence[tokenizer_pb2.GetTokenizerResponse]) -> TokenizerFiles:
    """The files of a whole answer. Raises Internal when they are not what was announced."""
    announced = list(responses[0].files) if responses else []
    contents: list[list[bytes]] = [[] for _ in announced]
    for response in responses[1:]:
        if response.file_index >= len(contents):
            raise Internal(f"a piece of file {response.file_index} came, and {len(contents)} were announced")
        contents[response.file_index].append(response.content)
    files = {file.name: b"".join(pieces) for file, pieces in zip(announced, contents, strict=True)}
    for file in announced:
        if hashlib.sha256(files[file.name]).hexdigest() != file.sha256:
            raise Internal(f"{file.name} did not arrive whole")
        path = PurePosixPath(file.name)
        if path.is_absolute() or ".." in path.parts:
            raise Internal(f"{file.name!r} is no name that a server may give")
    return TokenizerFiles(files, responses[0].fingerprint.vocabulary if responses else "")


def list_models_request() -> tokenizer_pb2.ListModelsRequest:
    """A call to ListModels."""
    return tokenizer_pb2.ListModelsRequest()


def model_cards(response: tokenizer_pb2.ListModelsResponse) -> list[ModelCard]:
    """What can be asked for."""
    return [
        ModelCard(
            card.name,
            card.max_context_tokens,
            card.vocab_size,
            card.fingerprint.vocabulary,
            tuple(capability_names(card)),
            card.embedding_size,
        )
        for card in response.models
    ]


def _events(response: Any, index: int) -> list[Event]:
    found: list[Event] = []
    if response.HasField("delta"):
        delta = response.delta
        found.append(_text_delta(delta.text, delta.num_tokens, index, response.choice, delta))
    if response.HasField("finish"):
        found.append(Finished(terminal_from_wire(response.finish), index, response.choice))
    return found


def _text_delta(text: str, num_tokens: int, index: int, choice: int, beside: Any) -> TextDelta:
    """`beside`: a message that says what else there is of these tokens, a delta or a Session's extras."""
    return TextDelta(
        text,
        num_tokens,
        tuple(beside.token_ids),
        index,
        choice,
        tuple(map(logprob_from_wire, beside.logprobs)),
        tuple(map(logprob_from_wire, beside.prompt_logprobs)),
        beside.reasoning,
        tuple(ToolCall(call.id, call.name, call.arguments, call.index) for call in beside.tool_calls),
    )


def _prompt(prompt: Prompt, field: str) -> gateway_pb2.Prompt:
    if not isinstance(prompt, str):
        return gateway_pb2.Prompt(token_ids=token_ids_message(prompt, field))
    refuse_bad_text(field, prompt)
    return gateway_pb2.Prompt(text=prompt)


def token_ids_message(ids: object, field: str) -> common_pb2.TokenIds:
    """Token ids as a message. Raises InvalidRequest."""
    if isinstance(ids, (bytes, str)) or not isinstance(ids, Iterable):
        raise invalid(field, f"{ids!r:.80} is not allowed: a sequence of token ids")
    ids = list(ids)
    for i, token in enumerate(ids):
        if not isinstance(token, SupportsIndex) or not 0 <= operator.index(token) <= MAX_TOKEN_ID:
            allowed = "a token id is an integer from 0 to 2^32 - 1"
            raise invalid(f"{field}[{i}]", f"{token!r:.80} is not allowed: {allowed}")
    return common_pb2.TokenIds(ids=ids)


def _truncation(given: CallOptions) -> tokenizer_pb2.Truncation | None:
    side, max_tokens = given.get("truncation_side"), given.get("max_prompt_tokens")
    if side is None and max_tokens is None:
        return None
    if side not in (None, "start", "end"):
        refuse([FieldViolation("truncation_side", f"{side!r} is not allowed: start or end")])
    if max_tokens is not None and not 1 <= max_tokens < 2**32:
        refuse([FieldViolation("max_prompt_tokens", f"{max_tokens!r} is not allowed: an integer of 1 or more")])
    at_end = side == "end"
    wire_side = tokenizer_pb2.TRUNCATION_SIDE_END if at_end else tokenizer_pb2.TRUNCATION_SIDE_START
    return tokenizer_pb2.Truncation(side=wire_side, max_tokens=max_tokens or 0)


def _call_timeout_s(given: CallOptions) -> float | None:
    timeout_s = given.get("timeout_s")
    return None if timeout_s is None else timeout_s + DEADLINE_GRACE_S
