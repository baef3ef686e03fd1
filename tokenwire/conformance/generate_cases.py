"""What the contract says of per-request streams, of refusals, and of who calls."""

import asyncio
from typing import Any

import grpc

from tokenwire.conformance.results import Cases, CaseSkipped, expect
from tokenwire.conformance.target import (
    PROMPT,
    Answers,
    Target,
    expect_error,
    expect_reason,
    unimplemented_skips,
)
from tokenwire.status import DOMAIN, STATUS_DETAILS_KEY
from tokenwire.v1 import gateway_pb2, tokenizer_pb2

cases: Cases[Target] = Cases()
HEALTH = "/grpc.health.v1.Health/Check"


@cases.case("health.serving", "grpc.health.v1 says SERVING for the whole server.")
async def health_serving(target: Target) -> None:
    """The answer is one enum: field 1, varint 1."""
    method: Any = target.channel.unary_unary(HEALTH)
    answer = await method(b"", metadata=target.metadata)
    expect(answer == b"\x08\x01", f"the answer was {answer!r}")


@cases.case("models.list", "ListModels names each model, its context and its vocabulary.")
async def models_list(target: Target) -> None:
    """The card that the other cases go by."""
    card = target.card
    expect(bool(card.name), "the model has no name")
    expect(card.max_context_tokens > 1, f"max_context_tokens is {card.max_context_tokens}")
    expect(card.vocab_size > 1, f"vocab_size is {card.vocab_size}")


@cases.case("generate.length", "A stream ends with exactly one finish, whose usage counts what the deltas counted.")
async def generate_length(target: Target) -> None:
    """Eight tokens."""
    _, finish = (await target.generate(PROMPT, max_tokens=8)).only
    expect_reason(finish, "LENGTH")
    expect(
        finish.usage.completion_tokens == 8, f"usage counts {finish.usage.completion_tokens} tokens, 8 were asked for"
    )


@cases.case(
    "generate.prompts", "Several prompts in one call: every message carries its prompt's index, each ends once."
)
async def generate_prompts(target: Target) -> None:
    """Three of them."""
    answers = await target.generate(PROMPT, "The sea was", "In the year 3000,", max_tokens=4)
    expect(set(answers.finishes) == {(0, 0), (1, 0), (2, 0)}, f"outputs were {sorted(answers.finishes)}")
    for finish in answers.finishes.values():
        expect_reason(finish, "LENGTH")


@cases.case("generate.choices", "num_choices outputs of one prompt, each with its own finish.")
async def generate_choices(target: Target) -> None:
    """Three choices."""
    answers = await target.generate(PROMPT, max_tokens=4, num_choices=3, temperature=1.0, seed=1)
    expect(set(answers.finishes) == {(0, 0), (0, 1), (0, 2)}, f"outputs were {sorted(answers.finishes)}")


@cases.case("generate.seed", "Equal seeds give equal text.")
async def generate_seed(target: Target) -> None:
    """Sampled twice."""
    first, _ = (await target.generate(PROMPT, max_tokens=16, temperature=1.0, seed=42)).only
    again, _ = (await target.generate(PROMPT, max_tokens=16, temperature=1.0, seed=42)).only
    expect(first == again, f"{first!r} and {again!r}")


@cases.case("generate.token-ids", "return_token_ids sends one id per token counted; ids are below vocab_size.")
async def generate_token_ids(target: Target) -> None:
    """As many as counted."""
    answers = await target.generate(PROMPT, max_tokens=8, return_token_ids=True)
    ids = answers.token_ids[0, 0]
    expect(len(ids) == answers.num_tokens[0, 0] == 8, f"{len(ids)} ids came for {answers.num_tokens[0, 0]} tokens")
    expect(max(ids) < target.card.vocab_size, f"id {max(ids)} is not below {target.card.vocab_size}")


@cases.case("generate.stop-string", "A stop string ends the text before it, and the finish says which.")
async def generate_stop_string(target: Target) -> None:
    """Whatever the greedy text holds is a stop string then."""
    whole, _ = (await target.generate(PROMPT, max_tokens=24)).only
    stop = next((whole[i : i + 3] for i in range(4, len(whole) - 3) if whole[i : i + 3].isascii()), "")
    if not stop:
        raise CaseSkipped("the text of 24 greedy tokens holds no three ASCII characters that could be a stop string")
    text, finish = (await target.generate(PROMPT, max_tokens=24, stop=stop)).only
    expect_reason(finish, "STOP_STRING")
    expect(finish.stop_string == stop, f"matched is {finish.stop_string!r}, not {stop!r}")
    expect(text == whole[: whole.index(stop)], f"the text is {text!r}, before the stop string stood {whole!r}")


@cases.case("generate.timeout", "When timeout_ms runs out the finish says DEADLINE, and the call's status is OK.")
async def generate_timeout(target: Target) -> None:
    """A text without end."""
    _, finish = (await target.generate(PROMPT, timeout_ms=400)).only
    if finish.reason and finish.usage.completion_tokens + finish.usage.prompt_tokens >= target.card.max_context_tokens:
        raise CaseSkipped("the whole context was generated within 400 ms")
    expect_reason(finish, "DEADLINE")


@cases.case("generate.deadline", "A call's own deadline ends it: with a DEADLINE finish, or DEADLINE_EXCEEDED.")
async def generate_deadline(target: Target) -> None:
    """The transport's own limit."""
    try:
        _, finish = (await target.generate(PROMPT, timeout=0.6)).only
        expect_reason(finish, "DEADLINE", "LENGTH")
    except grpc.RpcError as error:
        expect(error.code() is grpc.StatusCode.DEADLINE_EXCEEDED, f"the call ended with {error.code().name}")


@cases.case("generate.cancel", "A call that is cancelled after its first text leaves the server able to answer.")
async def generate_cancel(target: Target) -> None:
    """Cancelled many times over: what leaks shows."""
    for _ in range(20):
        call = target.stub.Generate(target.request(PROMPT), metadata=target.metadata)
        await call.read()
        call.cancel()
    await generate_length(target)


@cases.case("generate.bad-field", "A bad value is INVALID_ARGUMENT; BadRequest names the field, ErrorInfo the reason.")
async def generate_bad_field(target: Target) -> None:
    """A temperature below zero."""
    error = await target.refusal(target.generate(PROMPT, temperature=-1.0))
    expect_error(error, "INVALID_ARGUMENT", field="options.sampling.temperature")
    expect(bool(error.reason), "ErrorInfo has no reason")


@cases.case("generate.error-domain", "ErrorInfo.domain is tokenwire, in the trailing grpc-status-details-bin.")
async def generate_error_domain(target: Target) -> None:
    """The bytes themselves."""
    call = target.stub.Generate(target.request(PROMPT, temperature=-1.0), metadata=target.metadata)
    await target.refusal(anext(aiter(call)))
    trailing = {key: value for key, value in await call.trailing_metadata() or ()}
    expect(DOMAIN.encode() in trailing.get(STATUS_DETAILS_KEY, b""), f"trailing metadata has {sorted(trailing)}")


@cases.case("generate.no-prompt", "A call without prompts is INVALID_ARGUMENT and names `prompts`.")
async def generate_no_prompt(target: Target) -> None:
    """Nothing to continue."""
    expect_error(await target.refusal(target.generate()), "INVALID_ARGUMENT", field="prompts")


@cases.case("generate.unknown-model", "A model that is not served is NOT_FOUND.")
async def generate_unknown_model(target: Target) -> None:
    """A name that nobody would give."""
    request = target.request(PROMPT, max_tokens=1)
    request.model = "conformance/no-such-model"
    error = await target.refusal(anext(aiter(target.stub.Generate(request, metadata=target.metadata))))
    expect_error(error, "NOT_FOUND", "MODEL_NOT_FOUND")


@cases.case("generate.one-bad-prompt", "With several prompts a fault is the finish of its own index; the others go on.")
async def generate_one_bad_prompt(target: Target) -> None:
    """The second one is empty."""
    request = target.request(PROMPT, max_tokens=2)
    request.prompts.add()
    request.prompts.add(text="The sea was")
    answers = Answers()
    async for response in target.stub.Generate(request, metadata=target.metadata):
        answers.add(response, response.index)
    answers.check_ends(3)
    expect_reason(answers.finishes[1], "ERROR")
    expect_reason(answers.finishes[0], "LENGTH")
    expect_reason(answers.finishes[2], "LENGTH")


@cases.case("chat.answer", "Chat answers a conversation as a stream with one finish.", optional=True)
async def chat_answer(target: Target) -> None:
    """One turn."""
    message = tokenizer_pb2.ChatMessage(role="user", content="What is the capital of France?")
    request = gateway_pb2.ChatRequest(model=target.card.name, options=target.request(PROMPT, max_tokens=8).options)
    request.conversation.messages.append(message)

    async def ask() -> Answers:
        answers = Answers()
        async for response in target.stub.Chat(request, metadata=target.metadata):
            answers.add(response, response.choice)
        return answers

    answers = await unimplemented_skips(ask, "Chat")
    answers.check_ends(1)
    expect_reason(answers.finishes[0], "LENGTH")


@cases.case("auth.refused", "Without a key, and with a wrong one, a call is UNAUTHENTICATED.", optional=True)
async def auth_refused(target: Target) -> None:
    """Only where a key was given to try with."""
    if not target.metadata:
        raise CaseSkipped("no --api-key was given")
    for metadata in ((), (("authorization", "Bearer conformance-no-such-key"),)):
        call = target.stub.ListModels(tokenizer_pb2.ListModelsRequest(), metadata=metadata)
        expect_error(await target.refusal(call), "UNAUTHENTICATED")


@cases.case("many.calls", "64 calls at once on one connection all end as they should.")
async def many_calls(target: Target) -> None:
    """Side by side."""
    found = await asyncio.gather(*(target.generate(f"{PROMPT} {number}", max_tokens=2) for number in range(64)))
    for answers in found:
        expect_reason(answers.only[1], "LENGTH")
