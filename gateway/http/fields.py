"""The fields that every generating path takes, and what they mean as plain values."""

import re
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import Field

from gateway.http.body import Body, invalid
from gateway.text_requests import Prompt, TextRequest, text_request
from tokenwire.requests import GenerationOptions
from tokenwire.sampling import SamplingParams, StopParams, refuse

UINT32 = Annotated[int, Field(ge=0, le=2**32 - 1)]

TOKEN_ID = re.compile(r"0|[1-9][0-9]{0,9}", re.ASCII)

HARMLESS = frozenset(
    {
        "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention",
    }
)  # fmt: skip
"""Fields of OpenAI's API that say something about the account or the bill and nothing about the answer: ignored."""


class StreamOptions(Body):
    """OpenAI's `stream_options`."""

    include_usage: bool = False


class GenerationFields(Body):
    """How to generate. Absent and null mean the model's own defaults."""

    model: str | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    min_p: float | None = None
    seed: int | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    """Token ids as JSON has them in keys, in decimal."""
    allowed_token_ids: list[UINT32] | None = None
    banned_sequences: list[list[UINT32]] | None = None
    n: int | None = None
    max_tokens: int | None = None
    min_tokens: int | None = None
    stop: Any = None
    stop_token_ids: list[UINT32] | None = None
    ignore_eos: bool | None = None
    stream: bool | None = None
    priority: int | None = None
    tenant: str | None = None
    """Whose share of the machine is used."""
    timeout: Annotated[float, Field(gt=0)] | None = None
    """Seconds the whole request may take."""
    truncate: bool | None = None
    """Cut a prompt longer than the context at its start instead of refusing it."""
    skip_special_tokens: bool | None = None
    """Leave special tokens out of the text; true unless given."""
    spaces_between_special_tokens: bool | None = None
    """Keep the spaces that the decoder puts between special tokens; true unless given."""
    include_stop_str_in_output: bool | None = None
    split_special_tokens: bool | None = None
    """What stands for special tokens in the prompt is plain text."""
    cache_salt: str | None = None
    """Cached prefixes are shared only among requests of equal salt."""

    def options(
        self, *, max_tokens: int | None = None, logprobs: int | None = None, prompt_logprobs: int | None = None
    ) -> GenerationOptions:
        """How to generate, checked. Raises InvalidRequest. `max_tokens` stands in for an absent one.

        `logprobs`, `prompt_logprobs`: how many of the likeliest tokens; each path asks for them in its own words.
        """
        options = GenerationOptions(
            sampling=SamplingParams(
                temperature=self.temperature,
                top_k=self.top_k,
                top_p=self.top_p,
                min_p=self.min_p,
                seed=self.seed,
                repetition_penalty=self.repetition_penalty,
                presence_penalty=self.presence_penalty,
                frequency_penalty=self.frequency_penalty,
                logit_bias=_logit_bias(self.logit_bias or {}),
                allowed_token_ids=tuple(self.allowed_token_ids or ()),
                banned_sequences=tuple(map(tuple, self.banned_sequences or ())),
            ),
            stop=StopParams(
                max_tokens=self.max_tokens if self.max_tokens is not None else max_tokens,
                stop_token_ids=tuple(self.stop_token_ids or ()),
                ignore_eos=bool(self.ignore_eos),
                min_tokens=self.min_tokens or 0,
            ),
            stop_strings=_stop_strings(self.stop),
            include_stop_string=bool(self.include_stop_str_in_output),
            skip_special_tokens=self.skip_special_tokens is not False,
            spaces_between_special_tokens=self.spaces_between_special_tokens is not False,
            num_choices=1 if self.n is None else self.n,
            logprobs=logprobs,
            prompt_logprobs=prompt_logprobs,
        )
        refuse(options.violations())
        return options

    def requests(self, prompts: Sequence[Prompt], options: GenerationOptions) -> list[TextRequest]:
        """One request for each prompt."""
        return [
            text_request(
                prompt,
                model=self.model or "",
                options=options,
                truncate=bool(self.truncate),
                cache_salt=self.cache_salt or "",
                split_special_tokens=bool(self.split_special_tokens),
            )
            for prompt in prompts
        ]


def _logit_bias(value: dict[str, float]) -> tuple[tuple[int, float], ...]:
    for key in value:
        if not TOKEN_ID.fullmatch(key):
            raise invalid("logit_bias", f"{key!r:.80} is not allowed: keys are token ids in decimal")
    return tuple(sorted((int(key), bias) for key, bias in value.items()))


def _stop_strings(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    strings = [value] if isinstance(value, str) else value
    if not isinstance(strings, list) or not all(isinstance(text, str) for text in strings):
        raise invalid("stop", f"{value!r:.80} is not allowed: a text or a list of texts")
    return tuple(strings)


def prompts_of(value: Any, field: str) -> list[str | tuple[int, ...]]:
    """Prompts as OpenAI's completions take them: a text, token ids, or a list of either."""
    prompts = value if isinstance(value, list) and not _is_token_ids(value) else [value]
    found: list[str | tuple[int, ...]] = []
    for index, prompt in enumerate(prompts):
        if isinstance(prompt, str):
            found.append(prompt)
        elif _is_token_ids(prompt) or prompt == []:
            found.append(_token_ids(prompt, f"{field}[{index}]" if prompts is value else field))
        else:
            where = f"{field}[{index}]" if prompts is value else field
            allowed = "a text, a list of token ids, or a list of either"
            raise invalid(where, f"{prompt!r:.80} is not allowed: {allowed}")
    return found


def _is_token_ids(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(token) is int for token in value)


def _token_ids(value: list[int], field: str) -> tuple[int, ...]:
    for token in value:
        if not 0 <= token < 2**32:
            raise invalid(field, f"token id {token} is not allowed: an id of the model's vocabulary")
    return tuple(value)
