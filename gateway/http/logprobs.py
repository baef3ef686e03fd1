"""Log-probabilities as the HTTP paths show them: two forms of OpenAI's, and a plain one. Does not know where they go.

Sources: https://platform.openai.com/docs/api-reference/chat/object and …/completions/object.
"""

from collections.abc import Sequence
from typing import Any

from tokenwire.requests import TokenLogprob

LEAST = -9999.0
"""Stands for minus infinity, which JSON has no word for; it is what OpenAI's API says of a token that cannot be."""


def chat_logprobs(logprobs: Sequence[TokenLogprob]) -> dict[str, Any]:
    """`logprobs` of a chat choice. `bytes` are those of the token's text."""
    content = [{**_chat_token(logprob), "top_logprobs": list(map(_chat_token, logprob.top))} for logprob in logprobs]
    return {"content": content, "refusal": None}


def completion_logprobs(logprobs: Sequence[TokenLogprob]) -> dict[str, Any]:
    """`logprobs` of a completion choice. The sampled token is among its `top_logprobs`, as one more if need be."""
    return {
        "tokens": [logprob.text for logprob in logprobs],
        "token_logprobs": [_number(logprob) for logprob in logprobs],
        "top_logprobs": [_by_text(logprob) for logprob in logprobs],
        "text_offset": [logprob.text_offset for logprob in logprobs],
    }


def plain_logprobs(logprobs: Sequence[TokenLogprob]) -> list[dict[str, Any]]:
    """One object per token, for `/generate`."""
    return [
        {**_plain_token(logprob), "text_offset": logprob.text_offset, "top": list(map(_plain_token, logprob.top))}
        for logprob in logprobs
    ]


def _chat_token(logprob: TokenLogprob) -> dict[str, Any]:
    return {"token": logprob.text, "logprob": _number(logprob), "bytes": list(logprob.text.encode())}


def _plain_token(logprob: TokenLogprob) -> dict[str, Any]:
    return {"token_id": logprob.token_id, "text": logprob.text, "logprob": _number(logprob)}


def _by_text(logprob: TokenLogprob) -> dict[str, float]:
    """Of tokens with equal texts the likeliest."""
    found: dict[str, float] = {}
    for token in (*logprob.top, logprob):
        found.setdefault(token.text, _number(token))
    return found


def _number(logprob: TokenLogprob) -> float:
    return max(logprob.logprob, LEAST)
