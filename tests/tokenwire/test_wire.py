import time
from dataclasses import replace

import pytest

from tokenwire.constraints import (
    JSON_OBJECT,
    CallForm,
    Calls,
    Constraint,
    ConstraintForm,
    FreeText,
    choice,
    ebnf,
    json_schema,
    regex,
)
from tokenwire.errors import InvalidRequest, Overloaded, Unsupported
from tokenwire.requests import (
    CancelReason,
    FinishReason,
    GenerationOptions,
    ModelTimings,
    RequestContext,
    Terminal,
    TokenizerTimings,
    TokenLogprob,
    Usage,
)
from tokenwire.sampling import SCALARS, SamplingParams, StopParams
from tokenwire.v1 import common_pb2 as pb
from tokenwire.wire import (
    CANCEL_FROM_WIRE,
    CANCEL_TO_WIRE,
    FINISH_FROM_WIRE,
    call_limit_s,
    context_from_wire,
    context_to_wire,
    logprob_from_wire,
    logprob_to_wire,
    options_from_wire,
    options_to_wire,
    terminal_from_wire,
    terminal_to_wire,
)


def test_every_reason_of_the_wire_is_known_and_back() -> None:
    wire = {number for name, number in pb.FinishReason.items() if number}
    assert set(FINISH_FROM_WIRE) == wire and set(FINISH_FROM_WIRE.values()) == set(FinishReason)
    assert {CANCEL_FROM_WIRE[number] for number in CANCEL_TO_WIRE.values()} == set(CancelReason)


def test_options_survive_the_wire_and_absent_is_not_zero() -> None:
    full = GenerationOptions(
        sampling=SamplingParams(
            temperature=0.0, top_k=0, top_p=0.5, min_p=0.0, seed=2**64 - 1,
            repetition_penalty=1.25, presence_penalty=0.0, frequency_penalty=-0.5,
            logit_bias=((3, -100.0), (7, 1.5)), allowed_token_ids=(1, 2), banned_sequences=((5,), (6, 7)),
        ),
        stop=StopParams(max_tokens=7, stop_token_ids=(3, 4), ignore_eos=True, min_tokens=2),
        stop_strings=("a", "ü"),
        include_stop_string=True,
        skip_special_tokens=False,
        spaces_between_special_tokens=False,
        return_token_ids=True,
        num_choices=3,
        logprobs=0,
        prompt_logprobs=20,
        speculation=False,
        adapter="mine",
    )  # fmt: skip
    assert options_from_wire(options_to_wire(full)) == full
    assert options_from_wire(pb.GenerationOptions()) == GenerationOptions()
    assert options_from_wire(pb.GenerationOptions()).sampling.temperature is None


CALLS = Calls((CallForm("<call>", '{"type": "object"}', "</call>", "tools[0]"), CallForm("a", "{}", "")), "; ", 3)


def unbuilt() -> dict[str, pb.GenerationOptions]:
    return {
        "output.echo": pb.GenerationOptions(output=pb.OutputOptions(echo=True)),
    }


@pytest.mark.parametrize("name", unbuilt())
def test_what_is_not_built_is_refused_by_name_never_ignored(name: str) -> None:
    with pytest.raises(Unsupported) as caught:
        options_from_wire(unbuilt()[name])
    assert caught.value.violations[0].field == f"options.{name.split()[0]}"


def test_every_field_of_the_options_is_either_read_or_refused() -> None:
    """A field added to the contract must not be accepted and ignored."""
    read = {
        "SamplingParams": {*SCALARS, "logit_bias", "allowed_token_ids", "banned_sequences"},
        "StopConditions": {
            "max_tokens", "min_tokens", "stop_strings", "stop_token_ids", "ignore_eos", "include_stop_string",
        },
        "OutputOptions": {
            "logprobs", "prompt_logprobs", "return_token_ids", "skip_special_tokens", "spaces_between_special_tokens",
        },
        "GenerationOptions": {
            "sampling", "stop", "output", "num_choices", "constraint", "speculation", "adapter",
        },
        "CallsConstraint": {"forms", "separator", "max_calls"},
        "CallForm": {"before", "schema_json", "after", "field"},
        "Constraint": {form.value for form in ConstraintForm} | {"before"},
        "FreeText": {"opening", "closing", "is_open"},
    }  # fmt: skip
    refused = {name.split()[0].split(".")[-1] for name in unbuilt()}
    own = (pb.SamplingParams, pb.StopConditions, pb.OutputOptions, pb.GenerationOptions, pb.Constraint, pb.FreeText)
    own += (pb.CallsConstraint, pb.CallForm)
    for message in own:
        fields = {field.name for field in message.DESCRIPTOR.fields}
        assert fields == read[message.DESCRIPTOR.name] | (fields & refused), message.DESCRIPTOR.name


@pytest.mark.parametrize(
    "constraint",
    [
        Constraint(ConstraintForm.CALLS, calls=CALLS),
        json_schema('{"type": "integer"}'),
        JSON_OBJECT,
        regex("[ab]+"),
        choice("yes", "no"),
        ebnf('root ::= "a"'),
    ],
    ids=lambda constraint: constraint.form.value,
)
def test_constraints_survive_the_wire(constraint: Constraint) -> None:
    for before in (None, FreeText("<think>", "</think>"), FreeText("", "</think>", is_open=True)):
        options = GenerationOptions(constraint=replace(constraint, before=before))
        assert options_from_wire(options_to_wire(options)) == options


def test_zero_penalties_are_values_not_absence() -> None:
    sampling = pb.SamplingParams(repetition_penalty=1.0, presence_penalty=0.0, frequency_penalty=0.0)
    read = options_from_wire(pb.GenerationOptions(sampling=sampling)).sampling
    assert (read.repetition_penalty, read.presence_penalty, read.frequency_penalty) == (1.0, 0.0, 0.0)


def test_logprobs_survive_the_wire() -> None:
    top = (TokenLogprob(4, -0.25, text="a"), TokenLogprob(9, -1.5, text="b"))
    logprob = TokenLogprob(9, -1.5, top, "b", 12)
    assert logprob_from_wire(logprob_to_wire(logprob)) == logprob


@pytest.mark.parametrize(
    ("options", "field"),
    [
        (pb.GenerationOptions(sampling=pb.SamplingParams(temperature=float("inf"))), "options.sampling.temperature"),
        (pb.GenerationOptions(stop=pb.StopConditions(stop_strings=["x"] * 17)), "options.stop.stop_strings"),
        (pb.GenerationOptions(stop=pb.StopConditions(stop_strings=[""])), "options.stop.stop_strings"),
        (pb.GenerationOptions(stop=pb.StopConditions(stop_token_ids=range(65))), "options.stop.stop_token_ids"),
        (pb.GenerationOptions(num_choices=129), "options.num_choices"),
        (pb.GenerationOptions(stop=pb.StopConditions(max_tokens=3, min_tokens=4)), "options.stop.min_tokens"),
        (pb.GenerationOptions(output=pb.OutputOptions(logprobs=21)), "options.output.logprobs"),
        (pb.GenerationOptions(output=pb.OutputOptions(prompt_logprobs=21)), "options.output.prompt_logprobs"),
        (pb.GenerationOptions(constraint=pb.Constraint(json_object=False)), "options.constraint.json_object"),
        (
            pb.GenerationOptions(constraint=pb.Constraint(regex="a", before=pb.FreeText(opening="<t>"))),
            "options.constraint.before.closing",
        ),
        (
            pb.GenerationOptions(
                constraint=pb.Constraint(regex="a", before=pb.FreeText(closing="x" * 65, opening="a"))
            ),
            "options.constraint.before.closing",
        ),
        (
            pb.GenerationOptions(constraint=pb.Constraint(calls=pb.CallsConstraint(max_calls=1))),
            "options.constraint.calls.forms",
        ),
        (
            pb.GenerationOptions(
                constraint=pb.Constraint(calls=pb.CallsConstraint(forms=[pb.CallForm(before="a")], max_calls=129))
            ),
            "options.constraint.calls.max_calls",
        ),
        (
            pb.GenerationOptions(
                constraint=pb.Constraint(calls=pb.CallsConstraint(forms=[pb.CallForm()], max_calls=1))
            ),
            "options.constraint.calls.forms[0]",
        ),
        (pb.GenerationOptions(constraint=pb.Constraint(json_schema="")), "options.constraint.json_schema"),
        (pb.GenerationOptions(constraint=pb.Constraint(regex="a" * 16_385)), "options.constraint.regex"),
        (pb.GenerationOptions(constraint=pb.Constraint(ebnf="")), "options.constraint.ebnf"),
        (
            pb.GenerationOptions(constraint=pb.Constraint(choice=pb.ChoiceConstraint(texts=["a", ""]))),
            "options.constraint.choice.texts",
        ),
        (
            pb.GenerationOptions(constraint=pb.Constraint(choice=pb.ChoiceConstraint())),
            "options.constraint.choice.texts",
        ),
    ],
)
def test_bad_values_are_refused_with_field_value_and_what_is_allowed(options: pb.GenerationOptions, field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        options_from_wire(options)
    assert [violation.field for violation in caught.value.violations] == [field]


def test_the_time_left_becomes_a_deadline_and_the_calls_own_counts_with_its_margin() -> None:
    before = time.monotonic()
    context = context_from_wire(pb.RequestContext(timeout_ms=10_000), call_remaining_s=1.0)
    assert context.deadline_s is not None and 0.9 < context.deadline_s - before < 0.96
    assert context.request_id.startswith("req-")
    sent_on = context_to_wire(context)
    assert 0 < sent_on.timeout_ms <= 950
    assert not context_to_wire(RequestContext("x")).HasField("timeout_ms")


def test_terminals_survive_the_wire() -> None:
    terminal = Terminal(
        FinishReason.STOP_STRING,
        Usage(5, 1, 3),
        stop_string="\n",
        model_timings=ModelTimings(0.1, 0.2, 0.3),
        tokenizer_timings=TokenizerTimings(0.001, 0.002, 0.003, 0.004),
    )
    assert terminal_from_wire(terminal_to_wire(terminal, 9)) == terminal
    failed = terminal_from_wire(
        terminal_to_wire(Terminal(FinishReason.ERROR, error=Overloaded("full", retry_after_s=1.5)))
    )
    assert isinstance(failed.error, Overloaded) and failed.error.retry_after_s == 1.5


def test_options_that_were_asked_for_before_are_read_as_before_and_refused_as_before() -> None:
    message = pb.GenerationOptions(num_choices=2)
    message.sampling.temperature = 0.5
    assert options_from_wire(message) == options_from_wire(message)
    message.sampling.temperature = 0.25
    assert options_from_wire(message).sampling.temperature == 0.25
    message.sampling.temperature = -1
    for _ in range(2):
        with pytest.raises(InvalidRequest, match="temperature"):
            options_from_wire(message)
    long = pb.GenerationOptions()
    long.sampling.allowed_token_ids.extend(range(1000))
    assert options_from_wire(long).sampling.allowed_token_ids == tuple(range(1000))


def test_of_a_calls_time_some_is_left_for_its_end_to_come_back() -> None:
    assert call_limit_s(10.0) == pytest.approx(9.85)
    assert call_limit_s(0.02) == pytest.approx(0.0098), "at most half, and what gRPC rounds"
