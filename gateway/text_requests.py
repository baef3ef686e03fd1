"""A text request as the wire has it, made from plain values; opaque to those who only pass it on."""

from dataclasses import dataclass

from tokenwire.requests import GenerationOptions
from tokenwire.v1 import tokenizer_pb2
from tokenwire.wire import options_to_wire

TextRequest = tokenizer_pb2.TextRequest
"""Its context is filled in when it is sent."""


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation."""

    role: str
    content: str
    name: str = ""


Prompt = str | tuple[int, ...] | tuple[Message, ...]
"""A text, token ids, or a conversation; a conversation is never empty."""


def text_request(
    prompt: Prompt,
    *,
    model: str,
    options: GenerationOptions,
    truncate: bool = False,
    cache_salt: str = "",
    split_special_tokens: bool = False,
) -> TextRequest:
    """The request for one prompt. Token ids must fit 32 bits."""
    request = TextRequest(model=model, options=options_to_wire(options), truncate=truncate, cache_salt=cache_salt)
    request.split_special_tokens = split_special_tokens
    if isinstance(prompt, str):
        request.text = prompt
    elif prompt and isinstance(prompt[0], Message):
        for message in prompt:
            assert isinstance(message, Message)
            request.conversation.messages.add(role=message.role, content=message.content, name=message.name)
    else:
        request.token_ids.SetInParent()
        request.token_ids.ids.extend(token for token in prompt if isinstance(token, int))
    return request
