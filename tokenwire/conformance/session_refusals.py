"""How a server answers a Session that breaks the protocol: the call ends with a status, its reason in the details."""

from typing import Any

from tokenwire.conformance.peer import Peer
from tokenwire.conformance.results import Cases, CaseSkipped
from tokenwire.conformance.target import PROMPT, Target, expect_error
from tokenwire.v1 import common_pb2 as pb
from tokenwire.v1 import tokenizer_pb2

cases: Cases[Target] = Cases()


async def refused_at_once(target: Target, code: str, reason: str, **frame: Any) -> None:
    """Send one first frame and see the stream end so."""
    async with Peer(target) as peer:
        await peer.send(**frame)
        expect_error(await peer.refusal(), code, reason)


@cases.case("refusal.no-hello", "A first frame without hello ends the call: INVALID_ARGUMENT, NO_HELLO.")
async def no_hello(target: Target) -> None:
    """A Submit comes first."""
    submit = tokenizer_pb2.Submit(handle=1, request=tokenizer_pb2.TextRequest(text=PROMPT))
    await refused_at_once(target, "INVALID_ARGUMENT", "NO_HELLO", submits=[submit])


@cases.case("refusal.hello-and-more", "A first frame holds hello alone: INVALID_ARGUMENT, NO_HELLO.")
async def hello_and_more(target: Target) -> None:
    """A Cancel beside it."""
    hello = pb.Hello(protocol_version=1)
    await refused_at_once(target, "INVALID_ARGUMENT", "NO_HELLO", hello=hello, cancels=[pb.Cancel(handle=1)])


@cases.case("refusal.hello-twice", "A second hello ends the call: INVALID_ARGUMENT, HELLO_TWICE.")
async def hello_twice(target: Target) -> None:
    """In the second frame."""
    async with Peer(target) as peer:
        await peer.greet()
        await peer.send(hello=pb.Hello(protocol_version=1))
        expect_error(await peer.refusal(), "INVALID_ARGUMENT", "HELLO_TWICE")


@cases.case("refusal.version", "An unknown protocol version ends the call: FAILED_PRECONDITION, PROTOCOL_VERSION.")
async def version(target: Target) -> None:
    """One of the future."""
    hello = pb.Hello(protocol_version=4711)
    await refused_at_once(target, "FAILED_PRECONDITION", "PROTOCOL_VERSION", hello=hello)


@cases.case("refusal.model", "A hello that means a model which is not served ends the call: NOT_FOUND.")
async def model(target: Target) -> None:
    """A name that nobody would give."""
    hello = pb.Hello(protocol_version=1, models=[pb.ModelCard(name="conformance/no-such-model")])
    await refused_at_once(target, "NOT_FOUND", "MODEL_NOT_FOUND", hello=hello)


@cases.case(
    "refusal.vocabulary",
    "A hello that means another vocabulary ends the call: FAILED_PRECONDITION.",
    optional=True,
)
async def vocabulary(target: Target) -> None:
    """A hash that nothing has."""
    if not target.card.fingerprint.vocabulary:
        raise CaseSkipped("the model's card has no fingerprint of its vocabulary")
    card = pb.ModelCard(name=target.card.name, fingerprint=pb.Fingerprint(vocabulary=f"sha256:{'0' * 63}1"))
    hello = pb.Hello(protocol_version=1, models=[card])
    await refused_at_once(target, "FAILED_PRECONDITION", "FINGERPRINT_MISMATCH", hello=hello)


@cases.case("refusal.handle-order", "A handle that does not grow ends the call: INVALID_ARGUMENT, HANDLE_ORDER.")
async def handle_order(target: Target) -> None:
    """A finished one again; zero; one of an earlier request's choices."""
    for first, choices, second in ((2, 1, 2), (2, 1, 1), (1, 3, 3)):
        async with Peer(target) as peer:
            await peer.greet()
            await peer.submit(first, PROMPT, max_tokens=1, num_choices=choices)
            await peer.finish(first + choices - 1)
            await peer.submit(second, PROMPT, max_tokens=1)
            expect_error(await peer.refusal(), "INVALID_ARGUMENT", "HANDLE_ORDER")
    async with Peer(target) as peer:
        await peer.greet()
        await peer.submit(0, PROMPT, max_tokens=1)
        expect_error(await peer.refusal(), "INVALID_ARGUMENT", "HANDLE_ORDER")


@cases.case("refusal.drained", "A Submit after the client's own Drain ends the call: INVALID_ARGUMENT, DRAINED.")
async def drained(target: Target) -> None:
    """With something open, so that the call has not ended by itself."""
    async with Peer(target) as peer:
        await peer.greet()
        await peer.submit(1, PROMPT)
        await peer.send(drain=pb.Drain(reason="conformance"))
        await peer.submit(2, PROMPT, max_tokens=1)
        expect_error(await peer.refusal(), "INVALID_ARGUMENT", "DRAINED")
