"""A client program that does one thing wrong: faulty_client.py FAULT --case NAME --target HOST:PORT.

With `canned` as the fault it never connects, and tells what a right program would.
"""

import json
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grpc

from tokenwire.conformance.scripted_words import FIELD, RETRY_AFTER_S
from tokenwire.v1 import common_pb2 as pb
from tokenwire.v1 import gateway_pb2, gateway_pb2_grpc, tokenizer_pb2

HELLO = tokenizer_pb2.SessionRequest(hello=pb.Hello(protocol_version=1))


def tell(index: int, text: str, **more: Any) -> None:
    print(json.dumps({"output": index, "text": text, **more}), flush=True)


def generate(stub: Any, text: str, **fields: Any) -> Any:
    request = gateway_pb2.GenerateRequest(prompts=[gateway_pb2.Prompt(text=text)], **fields)
    return stub.Generate(request)


def zero(max_tokens: int = 3) -> pb.GenerationOptions:
    return pb.GenerationOptions(
        sampling=pb.SamplingParams(temperature=0), stop=pb.StopConditions(max_tokens=max_tokens)
    )


def frames(frames: Sequence[Any], pause_s: float, half_closes: threading.Event) -> Iterator[Any]:
    for frame in frames:
        yield frame
        time.sleep(pause_s)
    half_closes.wait()


def submit(handle: int, text: str, request_id: str = "", **fields: Any) -> Any:
    request = tokenizer_pb2.TextRequest(text=text, context=pb.RequestContext(request_id=request_id))
    return tokenizer_pb2.SessionRequest(submits=[tokenizer_pb2.Submit(handle=handle, request=request, **fields)])


DRAIN = tokenizer_pb2.SessionRequest(drain=pb.Drain())


def session(stub: Any, *sent: Any, pause_s: float = 0.2, half_closes: bool = True) -> None:
    """Send these, read to the end, and tell what a right client would."""
    half_close = threading.Event()
    if half_closes:
        half_close.set()
    texts: dict[int, str] = {}
    counts: dict[int, int] = {}
    reasons: dict[int, str] = {}
    for frame in stub.Session(frames(sent, pause_s, half_close)):
        for handle, text in zip(frame.handles, frame.texts, strict=True):
            texts[handle] = texts.get(handle, "") + text
            counts[handle] = counts.get(handle, 0) + 1
        for finish in frame.finishes:
            reasons[finish.handle] = pb.FinishReason.Name(finish.reason).removeprefix("FINISH_REASON_")
    half_close.set()
    for index, handle in enumerate(sorted(reasons)):
        tell(index, texts.get(handle, ""), reason=reasons[handle], tokens=counts.get(handle, 0))


def prints(line: str) -> Callable[[Any], None]:
    return lambda stub: print(line)


def told_generate(stub: Any, text: str, **options: Any) -> None:
    """A right call of the case `generate`, told as `text`."""
    list(generate(stub, "one two three", options=zero()))
    tell(0, text, **{"reason": "LENGTH", "tokens": 3, **options})


def told_error(stub: Any, prompt: str, calls: int = 1, **error: Any) -> None:
    for _ in range(calls):
        try:
            list(generate(stub, prompt))
        except grpc.RpcError:
            pass
    print(json.dumps({"error": error}))


def goes_on(stub: Any, prompt: str, *, on_the_same: bool) -> None:
    """After a frame that breaks the protocol, which is told of, leave its stream open and submit once more."""
    sent: queue.SimpleQueue[Any] = queue.SimpleQueue()
    for frame in (HELLO, submit(1, prompt, initial_credit=2)):
        sent.put(frame)
    call = stub.Session(iter(sent.get, None))
    while not next(call).handles:
        pass
    tell(0, "", error={"code": "INTERNAL"})
    if on_the_same:
        sent.put(submit(2, "one two"))
        while not next(call).finishes:
            pass
        tell(1, "one two")
    else:
        (told,) = [frame for frame in stub.Session(iter([HELLO, submit(1, "one two")])) if frame.finishes]
        tell(told.finishes[0].handle, "one two")
    call.cancel()
    sent.put(None)


def canned(case: str) -> None:
    """Never connect, and tell what a right client would."""
    for line in CANNED[case]:
        print(json.dumps(line))


def output(index: int, text: str, **more: Any) -> dict[str, Any]:
    return {"output": index, "text": text, **more}


def error(code: str, reason: str = "", **more: Any) -> dict[str, Any]:
    return {"error": {"code": code, "reason": reason, **more}}


BAD_FIELD = error("INVALID_ARGUMENT", "INVALID_REQUEST", fields=[FIELD])
OVERLOADED = error("RESOURCE_EXHAUSTED", "QUEUE_FULL", retry_after_ms=RETRY_AFTER_S * 1000)
ONE_TWO_THREE = [output(0, "one two three", reason="LENGTH", tokens=3)]
BROKEN = [output(0, "", **error("INTERNAL")), output(1, "one two")]
CANNED: dict[str, list[dict[str, Any]]] = {
    "generate": ONE_TWO_THREE, "chat": ONE_TWO_THREE, "tls": ONE_TWO_THREE, "key": ONE_TWO_THREE,
    "prompts": [output(0, "one two", reason="STOP_TOKEN"),
                output(1, "lost", reason="ERROR", **error("UNAVAILABLE", "MODEL_TIER_LOST"))],
    "bad-field": [BAD_FIELD], "overloaded": [OVERLOADED], "cancel": [error("CANCELLED")],
    "deadline": [error("DEADLINE_EXCEEDED")], "deadline-text": [output(0, "slow", reason="DEADLINE")],
    "session": [output(index, text, reason="STOP_TOKEN", tokens=len(text.split()))
                for index, text in enumerate(("one two", "three", "four five six"))],
    "session-choices": [output(0, "one two"), output(0, "one two", choice=1), output(1, "three")],
    "session-cancel": [output(0, "hang", reason="CANCELLED"), output(1, "one two three")],
    "session-leave": [output(1, "one two")], "session-credit": [output(0, "a b c d e f g h i j")],
    "session-held": [output(0, "a b"), output(1, "one two three")],
    "session-error": [output(0, "", reason="ERROR", **BAD_FIELD), output(1, "", **OVERLOADED), output(2, "one two")],
    "session-drain": [output(0, "hold on"), output(1, "one two")],
    "session-lost": [output(0, "hold", **error("UNAVAILABLE"))],
    "session-future": [output(0, "one two"), output(1, "three")],
    "session-many": [output(number, f"n{number}") for number in range(1000)],
    "session-large": [output(number, "slow") for number in range(40)],
    "session-too-many-choices": [output(0, "", **error("INVALID_ARGUMENT", "INVALID_REQUEST")), output(1, "three")],
    "session-bad-text": [output(0, "", **error("INVALID_ARGUMENT", "INVALID_REQUEST", fields=["text"])),
                         output(1, "three")],
    "session-time-limit": [output(0, "one"), output(1, "", reason="DEADLINE")],
    "session-no-hello": [output(0, "", reason="DEADLINE")],
    "session-overrun": BROKEN, "session-bad-frame": BROKEN,
}  # fmt: skip
"""By case: the lines of a program that has seen nothing."""
CREDITED = "a b c d e f g h i j"
FAULTS: dict[str, tuple[str, Callable[[Any], None], str]] = {
    "prints_junk": ("generate", prints("hello"), "not JSON"),
    "prints_a_list": ("generate", prints("[1]"), "not an object"),
    "prints_odd_outputs": ("generate", prints('{"output": [0]}'), "is not a number"),
    "prints_odd_choices": ("generate", prints('{"output": 0, "choice": "a"}'), "is not a number"),
    "skips_for_no_reason": ("generate", prints('{"skip": 123}'), "skip is not a text"),
    "prints_something_else": ("generate", prints('{"what": 1}'), "neither an output"),
    "exits": ("generate", lambda stub: sys.exit("no way"), "exit status 1: no way"),
    "hangs": ("generate", lambda stub: time.sleep(60), "took longer"),
    "asks_for_nothing": ("generate", lambda stub: tell(0, "one two three"), "0 calls of Generate"),
    "leaves_temperature_out": ("generate", lambda stub: list(generate(stub, "a")), "temperature is absent"),
    "wrong_max_tokens": ("generate", lambda stub: list(generate(stub, "a", options=zero(4))), "max_tokens is 4"),
    "wrong_text": ("generate", lambda stub: told_generate(stub, "one two"), "'one two'"),
    "wrong_reason": ("generate", lambda stub: told_generate(stub, "one two three", reason="STOP"), "'STOP'"),
    "wrong_tokens": ("generate", lambda stub: told_generate(stub, "one two three", tokens=9), "9"),
    "no_details": ("bad-field", lambda stub: told_error(stub, "refuse", code="INVALID_ARGUMENT"), "reason was told"),
    "wrong_fields": (
        "bad-field",
        lambda stub: told_error(stub, "refuse", code="INVALID_ARGUMENT", reason="INVALID_REQUEST", fields=["x"]),
        "fields were told",
    ),
    "hurries": (
        "overloaded",
        lambda stub: told_error(
            stub, "overload", 2, code="RESOURCE_EXHAUSTED", reason="QUEUE_FULL", retry_after_ms=1500
        ),
        "2 calls of Generate came",
    ),
    "no_deadline": ("deadline", lambda stub: told_error(stub, "one", code="DEADLINE_EXCEEDED"), "without a deadline"),
    "cancels_nothing": ("cancel", lambda stub: told_error(stub, "one", code="CANCELLED"), "saw no cancellation"),
    "no_hello": ("session", lambda stub: session(stub, submit(1, "one two")), "not hello alone"),
    "another_version": (
        "session",
        lambda stub: session(stub, tokenizer_pb2.SessionRequest(hello=pb.Hello(protocol_version=2))),
        "protocol_version is 2",
    ),
    "hello_twice": ("session", lambda stub: session(stub, HELLO, HELLO), "hello came twice"),
    "handles_shrink": (
        "session", lambda stub: session(stub, HELLO, submit(2, "one two"), submit(1, "three")), "not greater than 2"
    ),
    "shares_an_id": (
        "session", lambda stub: session(stub, HELLO, submit(1, "slow", "x"), submit(2, "hang on", "y"),
                                        submit(3, "three", "y"), tokenizer_pb2.SessionRequest(
                                            cancels=[pb.Cancel(handle=2)])), "shared by two"
    ),
    "leaves_without_a_word": (
        "session-leave",
        lambda stub: session(stub, HELLO, submit(1, "one two"), submit(2, "one two")),
        "no Cancel came",
    ),
    "cancels_another": (
        "session-cancel",
        lambda stub: session(stub, HELLO, submit(1, "one"), submit(2, "one two three"),
                             tokenizer_pb2.SessionRequest(cancels=[pb.Cancel(handle=2)])),
        "Cancels came for [2]",
    ),
    "no_initial_credit": (
        "session-credit", lambda stub: session(stub, HELLO, submit(1, CREDITED)), "initial_credit is None"
    ),
    "grants_too_much": (
        "session-credit",
        lambda stub: session(stub, HELLO, submit(1, CREDITED, initial_credit=2),
                             tokenizer_pb2.SessionRequest(credits=[pb.Credit(handle=1, tokens=8)])),
        "8 tokens are granted beyond",
    ),
    "grants_too_soon": (
        "session-held",
        lambda stub: session(stub, HELLO, submit(1, "a b", initial_credit=0),
                             tokenizer_pb2.SessionRequest(credits=[pb.Credit(handle=1, tokens=2)]),
                             submit(2, "one two three")),
        "before the other had ended",
    ),
    "opens_too_many": (
        "session-many",
        lambda stub: session(stub, HELLO, tokenizer_pb2.SessionRequest(submits=[
            tokenizer_pb2.Submit(handle=number + 1, request=tokenizer_pb2.TextRequest(text=f"n{number}"))
            for number in range(60)
        ])),
        "51 sequences are open",
    ),
    "opens_too_many_one_by_one": (
        "session-many",
        lambda stub: session(stub, HELLO, *(submit(number + 1, f"n{number}") for number in range(60)), pause_s=0.0),
        "51 sequences are open",
    ),
    "sends_no_time_limit": (
        "session-time-limit",
        lambda stub: session(stub, HELLO, submit(1, "one"), submit(2, "slow")),
        "timeout_ms is 0",
    ),
    "waits_beyond_its_time": ("session-no-hello", lambda stub: session(stub, HELLO), "took longer"),
    "takes_what_it_did_not_grant": (
        "session-overrun", lambda stub: session(stub, HELLO, submit(1, "slow", initial_credit=2)), "no error was told"
    ),
    "waits_for_129_choices": ("session-too-many-choices", lambda stub: tell(1, "three"), "no output 0"),
    "sends_something_else": (
        "session-bad-text", lambda stub: session(stub, HELLO, submit(1, "one two ?"), submit(2, "three")),
        "no error was told"
    ),
    "sends_a_frame_too_large": (
        "session-large",
        lambda stub: session(stub, HELLO, tokenizer_pb2.SessionRequest(submits=[
            tokenizer_pb2.Submit(handle=number, request=tokenizer_pb2.TextRequest(text="slow " + "x" * 1_000_000))
            for number in range(1, 41)
        ])),
        "RESOURCE_EXHAUSTED",
    ),
    "stays_on_a_stream_that_overran": (
        "session-overrun", lambda stub: goes_on(stub, "overrun", on_the_same=True), "Submit 2 came on a stream on which"
    ),
    "stays_on_a_stream_with_a_bad_frame": (
        "session-bad-frame", lambda stub: goes_on(stub, "crooked", on_the_same=True), "Submit 2 came on a stream on"
    ),
    "leaves_a_stream_open_that_overran": (
        "session-overrun", lambda stub: goes_on(stub, "overrun", on_the_same=False), "was open 5 s later"
    ),
    "leaves_a_stream_open_with_a_bad_frame": (
        "session-bad-frame", lambda stub: goes_on(stub, "crooked", on_the_same=False), "was open 5 s later"
    ),
    "submits_after_its_drain": (
        "session",
        lambda stub: session(stub, HELLO, submit(1, "hang on"), DRAIN, submit(2, "three"),
                             tokenizer_pb2.SessionRequest(cancels=[pb.Cancel(handle=1)])),
        "Submit 2 came in a frame after the client's own Drain",
    ),
}  # fmt: skip
"""By name: the case that sees it, what is done, and what the kit says."""
RIGHT: dict[str, tuple[str, Callable[[Any], None]]] = {
    "ends_with_drain": (
        "session",
        lambda stub: session(stub, HELLO, submit(1, "one two"), submit(2, "three"), submit(3, "four five six"), DRAIN,
                             half_closes=False),
    ),
    "takes_an_id_of_what_it_cancelled": (
        "session-cancel",
        lambda stub: session(stub, HELLO, submit(1, "hang on", "x"), tokenizer_pb2.SessionRequest(
            cancels=[pb.Cancel(handle=1)], submits=submit(2, "one two three", "x").submits)),
    ),
}  # fmt: skip
"""By name: the case, and what is done that is rarely done, and allowed."""


if __name__ == "__main__":
    if sys.argv[1] == "canned":
        canned(sys.argv[sys.argv.index("--case") + 1])
    else:
        with grpc.insecure_channel(sys.argv[sys.argv.index("--target") + 1]) as channel:
            {**FAULTS, **RIGHT}[sys.argv[1]][1](gateway_pb2_grpc.GenerationServiceStub(channel))
