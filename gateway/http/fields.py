"""The fields that every generating path takes, and what they mean as plain values.

Bounds in `json_schema_extra` are for whoever reads the description of the API: `tokenwire.sampling` and
`tokenwire.requests` hold requests to them, by these same numbers.
"""

import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, WithJsonSchema

from gateway.http.body import Body
from gateway.http.bounds import MAX_NOTES, at_most
from gateway.http.structured import ResponseFormat, StructuredOutputs, constraint_of
from gateway.text_requests import Prompt, TextRequest, text_requests
from tokenwire.errors import InvalidRequest
from tokenwire.requests import MAX_CHOICES, MAX_NAME_BYTES, MAX_PRIORITY, MAX_STOP_STRINGS, GenerationOptions
from tokenwire.sampling import (
    MAX_ALLOWED_TOKENS,
    MAX_BANNED_SEQUENCE_TOKENS,
    MAX_BANNED_SEQUENCES,
    MAX_BIAS,
    MAX_BIASED_TOKENS,
    MAX_PENALTY,
    MAX_REPETITION_PENALTY,
    MAX_SEED,
    MAX_STOP_TOKEN_IDS,
    MAX_TOKENS,
    SamplingParams,
    StopParams,
)
from tokenwire.token_calls import refuse_count

UINT32 = Annotated[int, Field(ge=0, le=2**32 - 1)]
Penalty = Annotated[float, Field(json_schema_extra={"minimum": -MAX_PENALTY, "maximum": MAX_PENALTY})]
Share = Annotated[float, Field(json_schema_extra={"minimum": 0, "maximum": 1})]
TokenCount = Annotated[int, Field(json_schema_extra={"minimum": 1, "maximum": MAX_TOKENS})]
Name = Annotated[str, Field(json_schema_extra={"maxLength": MAX_NAME_BYTES})]

MIN_SEED = -(2**63)
TOKEN_ID = re.compile(r"0|[1-9][0-9]{0,9}", re.ASCII)

TEXT = {"type": "string"}
IDS = {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 2**32 - 1}, "minItems": 1}
PROMPTS_SCHEMA = {"anyOf": [TEXT, IDS, {"type": "array", "minItems": 1, "items": {"anyOf": [TEXT, IDS]}}]}
"""What `prompts_of` takes."""
STOP_SCHEMA = {"anyOf": [TEXT, {"type": "array", "items": TEXT, "maxItems": MAX_STOP_STRINGS}, {"type": "null"}]}
"""What `_stop_strings` takes."""

UNBUILT_STREAM_OPTIONS: dict[str, tuple[Any, ...]] = {"include_obfuscation": (None, False)}


class StreamOptions(Body):
    """OpenAI's `stream_options`."""

    include_usage: bool = False


class AccountFields(Body):
    """Fields of OpenAI's API that say something about the account or the bill and nothing about the answer: ignored.

    But for `service_tier`, which an answer must repeat: here there is one, "default".
    """

    user: str | None = None
    metadata: Annotated[dict[str, str], at_most(MAX_NOTES)] | None = None
    service_tier: Literal["auto", "default", "flex", "scale", "priority", "fast"] | None = None
    """Every request is of the one tier there is; `priority` is what puts one before others."""
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    """Prompts are cached by what stands in them, whoever asks; `cache_salt` is what keeps them apart."""
    prompt_cache_retention: str | None = None
    prompt_cache_options: Annotated[dict[str, Any], at_most(MAX_NOTES)] | None = None


class GenerationFields(Body):
    """How to generate. Absent and null mean the model's own defaults."""

    model: str | None = None
    temperature: Annotated[float, Field(json_schema_extra={"minimum": 0})] | None = None
    top_p: Annotated[float, Field(json_schema_extra={"exclusiveMinimum": 0, "maximum": 1})] | None = None
    top_k: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    min_p: Share | None = None
    seed: Annotated[int, Field(json_schema_extra={"minimum": MIN_SEED, "maximum": MAX_SEED})] | None = None
    """A negative one, as OpenAI's API takes it, stands for the 64 bits that it is."""
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    repetition_penalty: (
        Annotated[float, Field(json_schema_extra={"exclusiveMinimum": 0, "maximum": MAX_REPETITION_PENALTY})] | None
    ) = None
    logit_bias: (
        Annotated[
            dict[str, Annotated[float, Field(json_schema_extra={"minimum": -MAX_BIAS, "maximum": MAX_BIAS})]],
            Field(json_schema_extra={"propertyNames": {"pattern": "^[0-9]+$"}}),
            at_most(MAX_BIASED_TOKENS),
        ]
        | None
    ) = None
    """Token ids as JSON has them in keys, in decimal."""
    allowed_token_ids: Annotated[list[UINT32], at_most(MAX_ALLOWED_TOKENS)] | None = None
    banned_sequences: (
        Annotated[list[Annotated[list[UINT32], at_most(MAX_BANNED_SEQUENCE_TOKENS)]], at_most(MAX_BANNED_SEQUENCES)]
        | None
    ) = None
    n: Annotated[int, Field(json_schema_extra={"minimum": 1, "maximum": MAX_CHOICES})] | None = None
    max_tokens: TokenCount | None = None
    min_tokens: Annotated[int, Field(json_schema_extra={"minimum": 0, "maximum": MAX_TOKENS})] | None = None
    stop: Annotated[Any, WithJsonSchema(STOP_SCHEMA)] = None
    stop_token_ids: Annotated[list[UINT32], at_most(MAX_STOP_TOKEN_IDS)] | None = None
    ignore_eos: bool | None = None
    stream: bool | None = None
    priority: Annotated[int, Field(json_schema_extra={"minimum": -MAX_PRIORITY, "maximum": MAX_PRIORITY})] | None = None
    """Higher is served first, and refused last."""
    tenant: Name | None = None
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
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    """What the output must look like, beyond what `response_format` can say."""
    split_special_tokens: bool | None = None
    """What stands for special tokens in the prompt is plain text."""
    cache_salt: Name | None = None
    """Cached prefixes are shared only among requests of equal salt."""
    speculation: bool | None = None
    """Whether tokens may be drafted ahead: quicker or not, the same tokens."""

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
                seed=_seed(self.seed),
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
            constraint=constraint_of(self.response_format, self.structured_outputs),
            speculation=self.speculation,
        )
        options.refuse_violations()
        return options

    def requests(self, prompts: Sequence[Prompt], options: GenerationOptions) -> list[TextRequest]:
        """One request for each prompt. Raises InvalidRequest where what they repeat is too much."""
        return text_requests(
            prompts,
            model=self.model or "",
            options=options,
            truncate=bool(self.truncate),
            cache_salt=self.cache_salt or "",
            split_special_tokens=bool(self.split_special_tokens),
        )


def _seed(value: int | None) -> int | None:
    return value + MAX_SEED + 1 if value is not None and MIN_SEED <= value < 0 else value


def _logit_bias(value: dict[str, float]) -> tuple[tuple[int, float], ...]:
    for key in value:
        if not TOKEN_ID.fullmatch(key):
            raise InvalidRequest.of("logit_bias", f"{key!r:.80} is not allowed: keys are token ids in decimal")
    return tuple(sorted((int(key), bias) for key, bias in value.items()))


def _stop_strings(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    strings = [value] if isinstance(value, str) else value
    if isinstance(strings, list) and len(strings) > MAX_STOP_STRINGS:
        raise InvalidRequest.of("stop", f"{len(strings)} strings are too many: at most {MAX_STOP_STRINGS}")
    if not isinstance(strings, list) or not all(isinstance(text, str) for text in strings):
        raise InvalidRequest.of("stop", f"{value!r:.80} is not allowed: a text or a list of texts")
    return tuple(strings)


def prompts_of(value: Any, field: str, most: int, noun: str = "prompts") -> list[str | tuple[int, ...]]:
    """Prompts as OpenAI's completions take them: a text, token ids, or a list of either.

    Raises InvalidRequest. How many there are is looked at before what they are.
    """
    prompts = value if isinstance(value, list) and not _is_token_ids(value) else [value]
    refuse_count(len(prompts), noun, field, most)
    found: list[str | tuple[int, ...]] = []
    for index, prompt in enumerate(prompts):
        if isinstance(prompt, str):
            found.append(prompt)
        elif _is_token_ids(prompt) or prompt == []:
            found.append(_token_ids(prompt, f"{field}[{index}]" if prompts is value else field))
        else:
            where = f"{field}[{index}]" if prompts is value else field
            allowed = "a text, a list of token ids, or a list of either"
            raise InvalidRequest.of(where, f"{prompt!r:.80} is not allowed: {allowed}")
    return found


def _is_token_ids(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(token) is int for token in value)


def _token_ids(value: list[int], field: str) -> tuple[int, ...]:
    for token in value:
        if not 0 <= token < 2**32:
            raise InvalidRequest.of(field, f"token id {token} is not allowed: an id of the model's vocabulary")
    return tuple(value)
