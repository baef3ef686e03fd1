"""The keyword arguments that `generate` and `chat` share, and what they become. Does not know the wire."""

import json
import time
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any, Literal, TypedDict

from tokenwire.constraints import JSON_OBJECT, Constraint, choice, ebnf, json_schema, regex
from tokenwire.errors import FieldViolation
from tokenwire.requests import MAX_TIMEOUT_S, GenerationOptions, RequestContext, is_unicode, new_request_id
from tokenwire.sampling import SamplingParams, StopParams, refuse


class CallerOptions(TypedDict, total=False):
    """For whom a call is made, and by what."""

    model: str
    """Name of the model; absent: the only one there is."""
    timeout_s: float
    """After this time the call ends: a generation with what it has (FinishReason.DEADLINE), any other with
    DeadlineExceeded."""
    request_id: str
    """Appears in every tier's logs; absent: drawn at random."""
    priority: int
    """Higher runs first; from -100 to 100."""
    tenant: str


class CallOptions(CallerOptions, total=False):
    """How to generate and for whom. An absent sampling option means the model's own default; zero means zero."""

    adapter: str
    """Name of a loaded LoRA adapter; absent: the plain model."""
    max_tokens: int
    """Most tokens to generate; absent: as many as the context holds."""
    temperature: float
    """0 is greedy."""
    top_k: int
    top_p: float
    min_p: float
    seed: int
    """Fixes the noise: equal seed, equal tokens."""
    repetition_penalty: float
    """Above 1: tokens of prompt and output become less likely; 1 changes nothing."""
    presence_penalty: float
    """Subtracted once from the logits of tokens of the output; from -2 to 2."""
    frequency_penalty: float
    """Subtracted per occurrence from the logits of tokens of the output; from -2 to 2."""
    logit_bias: Mapping[int, float]
    """Token id → what is added to its logit; from -100 to 100."""
    allowed_token_ids: Sequence[int]
    """Only these may be drawn."""
    banned_sequences: Sequence[Sequence[int]]
    """Runs of token ids of which the last may not follow the others."""
    min_tokens: int
    """No end before this many tokens: until then no stop id is drawn and no stop string looked for."""
    stop: str | Sequence[str]
    """Ends the text before the first of these."""
    stop_token_ids: Sequence[int]
    include_stop_string: bool
    ignore_eos: bool
    skip_special_tokens: bool
    return_token_ids: bool
    logprobs: int
    """Log-probability of each token, and of this many likeliest ones; from 0 to 20."""
    prompt_logprobs: int
    """The same for the prompt's tokens from the second on."""
    speculation: bool
    """Whether the server may draft tokens ahead: quicker or not, the same tokens; absent: as it does by default."""
    json_schema: Mapping[str, Any] | str
    """The output is JSON that validates against this schema, given as a mapping or as JSON text."""
    json_object: bool
    """The output is a JSON object."""
    regex: str
    """The output matches this regular expression from start to end."""
    choice: Sequence[str]
    """The output is one of these texts."""
    ebnf: str
    """The output is a text of this grammar's root rule."""
    num_choices: int
    """Outputs per prompt; where the model's default is greedy they are equal unless `temperature` is above 0."""
    spaces_between_special_tokens: bool
    """With `skip_special_tokens` false: keep the spaces that the decoder puts between special tokens; absent: true."""
    split_special_tokens: bool
    """Read what stands for special tokens in prompts or messages as plain text; absent: it becomes special tokens."""
    truncate: bool
    """Cut a prompt longer than the context at its start instead of refusing it."""
    truncation_side: Literal["start", "end"]
    """Cut a prompt that is too long at this end; stands for `truncate` too."""
    max_prompt_tokens: int
    """Cut a prompt to this many tokens, at `truncation_side` or its start."""
    cache_salt: str
    """Cached prefixes are shared only among requests of equal salt."""


def generation_options(given: CallOptions) -> GenerationOptions:
    """How to generate. Raises InvalidRequest for a value that no server would take."""
    stop = given.get("stop", ())
    options = GenerationOptions(
        sampling=SamplingParams(
            temperature=given.get("temperature"),
            top_k=given.get("top_k"),
            top_p=given.get("top_p"),
            min_p=given.get("min_p"),
            seed=given.get("seed"),
            repetition_penalty=given.get("repetition_penalty"),
            presence_penalty=given.get("presence_penalty"),
            frequency_penalty=given.get("frequency_penalty"),
            logit_bias=tuple(sorted(given.get("logit_bias", {}).items())),
            allowed_token_ids=tuple(given.get("allowed_token_ids", ())),
            banned_sequences=tuple(map(tuple, given.get("banned_sequences", ()))),
        ),
        stop=StopParams(
            max_tokens=given.get("max_tokens"),
            stop_token_ids=tuple(given.get("stop_token_ids", ())),
            ignore_eos=given.get("ignore_eos", False),
            min_tokens=given.get("min_tokens", 0),
        ),
        stop_strings=(stop,) if isinstance(stop, str) else tuple(stop),
        include_stop_string=given.get("include_stop_string", False),
        skip_special_tokens=given.get("skip_special_tokens", True),
        spaces_between_special_tokens=given.get("spaces_between_special_tokens", True),
        return_token_ids=given.get("return_token_ids", False),
        num_choices=given.get("num_choices", 1),
        logprobs=given.get("logprobs"),
        prompt_logprobs=given.get("prompt_logprobs"),
        adapter=given.get("adapter", ""),
        speculation=given.get("speculation"),
        constraint=constraint_of(given),
    )
    refuse(options.violations())
    return options


def constraint_of(given: CallOptions) -> Constraint | None:
    """What the output must look like; None: free text. Raises InvalidRequest where more than one form is given."""
    found: list[Constraint] = []
    if "json_schema" in given:
        found.append(json_schema(schema_text(given["json_schema"])))
    if given.get("json_object"):
        found.append(JSON_OBJECT)
    if "regex" in given:
        refuse_bad_text("regex", given["regex"])
        found.append(regex(given["regex"]))
    if "choice" in given:
        for index, text in enumerate(given["choice"]):
            refuse_bad_text(f"choice[{index}]", text)
        found.append(choice(*given["choice"]))
    if "ebnf" in given:
        refuse_bad_text("ebnf", given["ebnf"])
        found.append(ebnf(given["ebnf"]))
    if len(found) > 1:
        forms = " and ".join(each.form.value for each in found)
        refuse([FieldViolation("constraint", f"{forms} together are not allowed: one form at most")])
    return found[0] if found else None


def schema_text(schema: Mapping[str, Any] | str) -> str:
    """A schema as JSON. Raises InvalidRequest for what JSON cannot hold."""
    if isinstance(schema, str):
        return schema
    try:
        return json.dumps(schema, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        refuse([FieldViolation("json_schema", f"is not JSON ({error})")])
        raise


def refuse_timeout(timeout_s: object) -> None:
    """Raise InvalidRequest for a time that no call can be given."""
    if not isinstance(timeout_s, Real) or not 0 < float(timeout_s) <= MAX_TIMEOUT_S:
        allowed = f"a number of seconds above 0, at most {MAX_TIMEOUT_S:.0f}, or leave it out"
        refuse([FieldViolation("timeout_s", f"{timeout_s!r} is not allowed: {allowed}")])


def refuse_bad_text(field: str, text: object) -> None:
    """Raise InvalidRequest for what is no text, and for one with lone surrogates, which cannot be sent."""
    if not isinstance(text, str):
        refuse([FieldViolation(field, f"{text!r:.80} is not allowed: a text")])
    elif not is_unicode(text):
        refuse([FieldViolation(field, f"{text[:80]!r} is not valid Unicode")])


def request_context(given: CallOptions) -> RequestContext:
    """Who asks. Raises InvalidRequest; an option that does not exist is a TypeError, as for any Python function."""
    unknown = sorted(given.keys() - CallOptions.__annotations__.keys())
    if unknown:
        allowed = ", ".join(CallOptions.__annotations__)
        raise TypeError(f"no such option: {', '.join(unknown)}; allowed are {allowed}")
    refuse_bad_text("cache_salt", given.get("cache_salt", ""))
    return caller_context(given)


def caller_context(given: CallerOptions) -> RequestContext:
    """Who asks, of a call whose options are known to exist. Raises InvalidRequest."""
    timeout_s = given.get("timeout_s")
    if timeout_s is not None:
        refuse_timeout(timeout_s)
    for name in ("model", "tenant"):
        refuse_bad_text(name, given.get(name, ""))
    context = RequestContext(
        request_id=given.get("request_id") or new_request_id(),
        priority=given.get("priority", 0),
        tenant=given.get("tenant", ""),
        deadline_s=None if timeout_s is None else time.monotonic() + timeout_s,
    )
    refuse(context.violations())
    return context
