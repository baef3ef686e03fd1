"""The server that is tried: its stub, its first model, and calls whose answers are checked for what always holds."""

from collections.abc import Awaitable, Callable
from typing import Any

import grpc

from tokenwire.conformance.results import CaseFailed, CaseSkipped, describe, expect
from tokenwire.errors import TokenwireError
from tokenwire.status import from_rpc_error
from tokenwire.v1 import common_pb2 as pb
from tokenwire.v1 import gateway_pb2, gateway_pb2_grpc

PROMPT = "Once upon a time"
MODELS_LIMIT_S = 10.0


class Target:
    """A server under test. Its channel belongs to the caller."""

    def __init__(self, channel: grpc.aio.Channel, api_key: str = "") -> None:
        self.channel = channel
        self.api_key = api_key
        self.stub: Any = gateway_pb2_grpc.GenerationServiceStub(channel)  # type: ignore[no-untyped-call]
        self.metadata: tuple[tuple[str, str], ...] = (("authorization", f"Bearer {api_key}"),) if api_key else ()
        self.card = pb.ModelCard()

    def choose(self, cards: list[pb.ModelCard], model: str) -> None:
        """Take the model to ask for: the one named, or the first that generates. Raises CaseFailed."""
        fit = [card for card in cards if (card.name == model if model else generates(card))]
        expect(bool(fit), f"no model {model or 'that generates'} is listed: {[card.name for card in cards]}")
        self.card = fit[0]

    async def refusal(self, call: Awaitable[Any]) -> TokenwireError:
        """The error with which a call ends. Raises CaseFailed when it succeeds."""
        try:
            await call
        except grpc.RpcError as error:
            return from_rpc_error(error)
        raise CaseFailed("the call succeeded")

    async def generate(self, *prompts: str, timeout: float | None = None, **options: Any) -> "Answers":
        """Everything a Generate call answers."""
        call = self.stub.Generate(self.request(*prompts, **options), metadata=self.metadata, timeout=timeout)
        answers = Answers()
        async for response in call:
            answers.add(response, (response.index, response.choice))
        answers.check_ends(max(len(prompts), 1) * (options.get("num_choices") or 1))
        return answers

    def request(self, *prompts: str, timeout_ms: int = 0, **options: Any) -> gateway_pb2.GenerateRequest:
        """A GenerateRequest; options as `options_of` takes them."""
        request = gateway_pb2.GenerateRequest(
            model=self.card.name,
            prompts=[gateway_pb2.Prompt(text=text) for text in prompts],
            options=options_of(**options),
        )
        if timeout_ms:
            request.context.timeout_ms = timeout_ms
        return request


class Answers:
    """What came, by output; refuses what must never come."""

    def __init__(self) -> None:
        self.texts: dict[Any, str] = {}
        self.num_tokens: dict[Any, int] = {}
        self.token_ids: dict[Any, list[int]] = {}
        self.finishes: dict[Any, pb.Finish] = {}

    def add(self, response: Any, key: Any) -> None:
        """Take one message of Generate or Chat. Raises CaseFailed."""
        expect(key not in self.finishes, f"output {key}: something came after its finish")
        expect(response.HasField("delta") or response.HasField("finish"), f"output {key}: an empty message")
        if response.HasField("delta"):
            self.texts[key] = self.texts.get(key, "") + response.delta.text
            self.num_tokens[key] = self.num_tokens.get(key, 0) + response.delta.num_tokens
            self.token_ids.setdefault(key, []).extend(response.delta.token_ids)
        if response.HasField("finish"):
            self.finishes[key] = response.finish
            check_finish(response.finish, self.num_tokens.get(key, 0), f"output {key}")

    def check_ends(self, num_outputs: int) -> None:
        """Raise CaseFailed unless every output has its finish."""
        expect(
            len(self.finishes) == num_outputs,
            f"{len(self.finishes)} of {num_outputs} outputs had a finish: {self.finishes}",
        )

    @property
    def only(self) -> tuple[str, pb.Finish]:
        """Text and end of the one output."""
        ((key, finish),) = self.finishes.items()
        return self.texts.get(key, ""), finish


def check_finish(finish: pb.Finish, num_tokens: int, what: str) -> None:
    """What holds of every end. Raises CaseFailed."""
    expect(finish.reason != pb.FINISH_REASON_UNSPECIFIED, f"{what}: the finish has no reason")
    failed = finish.reason == pb.FINISH_REASON_ERROR
    expect(failed == finish.HasField("error"), f"{what}: reason {reason_name(finish)} and error do not go together")
    whole = finish.reason in (
        pb.FINISH_REASON_LENGTH, pb.FINISH_REASON_STOP_TOKEN, pb.FINISH_REASON_STOP_STRING,
    )  # fmt: skip
    counted = finish.usage.completion_tokens
    if whole:
        expect(counted == num_tokens, f"{what}: usage counts {counted} tokens, deltas {num_tokens}")
        expect(finish.usage.prompt_tokens > 0, f"{what}: usage counts no prompt tokens")


def options_of(
    *,
    max_tokens: int | None = None,
    temperature: float | None = 0.0,
    seed: int | None = None,
    stop: str = "",
    ignore_eos: bool = True,
    num_choices: int = 0,
    return_token_ids: bool = False,
) -> pb.GenerationOptions:
    """Options of a request that goes on until it is stopped, greedily, where nothing else is said."""
    options = pb.GenerationOptions(num_choices=num_choices)
    if temperature is not None:
        options.sampling.temperature = temperature
    if seed is not None:
        options.sampling.seed = seed
    if max_tokens is not None:
        options.stop.max_tokens = max_tokens
    options.stop.ignore_eos = ignore_eos
    options.stop.stop_strings.extend([stop] if stop else [])
    options.output.return_token_ids = return_token_ids
    return options


def generates(card: pb.ModelCard) -> bool:
    """Whether a model can be asked to generate."""
    return not card.capabilities or pb.CAPABILITY_GENERATE in card.capabilities


def reason_name(finish: pb.Finish) -> str:
    """FINISH_REASON_STOP_TOKEN → STOP_TOKEN."""
    known = pb.FinishReason.DESCRIPTOR.values_by_number.get(finish.reason)
    return known.name.removeprefix("FINISH_REASON_") if known is not None else str(finish.reason)


def expect_reason(finish: pb.Finish, *names: str) -> None:
    """Raise CaseFailed unless it ended for one of these."""
    found = reason_name(finish)
    said = f": {finish.error.message}" if finish.HasField("error") else ""
    expect(found in names, f"the output ended with {found}{said}, not {' or '.join(names)}")


def expect_error(error: TokenwireError, code: str, reason: str = "", field: str = "") -> None:
    """Raise CaseFailed unless an error is of this code, and has this reason and names this field where one is given."""
    expect(error.code == code, f"the answer was {describe(error)}, not {code}")
    expect(not reason or error.reason == reason, f"ErrorInfo.reason is {error.reason!r}, not {reason!r}")
    named = [violation.field for violation in error.violations]
    expect(not field or field in named, f"BadRequest names {named}, not {field!r}")


async def unimplemented_skips(call: Callable[[], Awaitable[Any]], what: str) -> Any:
    """What a call answers. Raises CaseSkipped where the server does not offer it."""
    try:
        return await call()
    except grpc.RpcError as error:
        if error.code() in (grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.FAILED_PRECONDITION):
            raise CaseSkipped(f"{what}: {describe(from_rpc_error(error))}") from None
        raise
