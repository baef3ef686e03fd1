"""What the contract says of a Session that keeps its protocol: docs/session.md."""

from tokenwire.conformance.peer import Peer
from tokenwire.conformance.results import Cases, expect
from tokenwire.conformance.target import PROMPT, Target, expect_error, expect_reason, reason_name
from tokenwire.status import from_wire
from tokenwire.v1 import common_pb2 as pb

cases: Cases[Target] = Cases()
MANY, MOST = 256, 1024


@cases.case("session.hello", "The server's first frame is hello alone: version 1, its models, an epoch.")
async def session_hello(target: Target) -> None:
    """Nothing is asked for."""
    async with Peer(target) as peer:
        await peer.greet()
        expect(peer.hello.protocol_version == 1, f"protocol_version is {peer.hello.protocol_version}")
        expect(target.card.name in [card.name for card in peer.hello.models], "hello does not name the model")
        expect(peer.hello.epoch != 0, "epoch is 0")


@cases.case("session.submits", "Several Submits in one frame; handles may leave gaps; each ends once, after its text.")
async def session_submits(target: Target) -> None:
    """Three of them."""
    async with Peer(target) as peer:
        await peer.greet()
        await peer.send(submits=[peer.made(handle, f"{PROMPT} {handle}", max_tokens=3) for handle in (1, 2, 10)])
        for handle in (1, 2, 10):
            expect_reason(await peer.finish(handle), "LENGTH")


@cases.case("session.choices", "Choice i of num_choices has handle + i.")
async def session_choices(target: Target) -> None:
    """Three choices, and a request behind them."""
    async with Peer(target) as peer:
        await peer.greet()
        await peer.submit(5, PROMPT, max_tokens=3, num_choices=3, temperature=1.0)
        await peer.submit(8, PROMPT, max_tokens=3)
        for handle in (5, 6, 7, 8):
            expect_reason(await peer.finish(handle), "LENGTH")


@cases.case("session.same-as-generate", "A Session gives the text that Generate gives.")
async def session_same_as_generate(target: Target) -> None:
    """Greedy."""
    wanted, _ = (await target.generate(PROMPT, max_tokens=12)).only
    async with Peer(target) as peer:
        await peer.greet()
        await peer.submit(1, PROMPT, max_tokens=12)
        await peer.finish(1)
        expect(peer.texts[1] == wanted, f"the session's text is {peer.texts[1]!r}, Generate's {wanted!r}")


@cases.case("session.many", f"{MANY} requests at once on one stream, each with its end.")
async def session_many(target: Target) -> None:
    """As many as hello allows."""
    async with Peer(target) as peer:
        await peer.greet()
        number = min(MANY, peer.hello.max_requests or MANY)
        await peer.send(submits=[peer.made(i + 1, f"{PROMPT} {i}", max_tokens=2) for i in range(number)])
        await peer.until(lambda: len(peer.finishes) == number)
        ends = {reason_name(finish) for finish in peer.finishes.values()}
        expect(ends == {"LENGTH"}, f"they ended with {sorted(ends)}")


@cases.case("session.max-requests", "As many requests at once as hello.max_requests says: none is refused.")
async def session_max_requests(target: Target) -> None:
    """Up to a bound of the case's own."""
    async with Peer(target) as peer:
        await peer.greet()
        number = min(MOST, peer.hello.max_requests or MANY)
        await peer.send(submits=[peer.made(i + 1, f"{PROMPT} {i}", max_tokens=1) for i in range(number)])
        await peer.until(lambda: len(peer.finishes) == number)
        for finish in peer.finishes.values():
            expect_reason(finish, "LENGTH")


@cases.case("session.cancel", "Cancel ends its handle alone, with CANCELLED, and nothing follows.")
async def session_cancel(target: Target) -> None:
    """Of two, one is taken back."""
    async with Peer(target) as peer:
        await peer.greet()
        await peer.submit(1, PROMPT)
        await peer.submit(2, PROMPT, max_tokens=30)
        await peer.tokens(1, 1)
        await peer.send(cancels=[pb.Cancel(handle=1, reason=pb.CANCEL_REASON_CLIENT)])
        expect_reason(await peer.finish(1), "CANCELLED")
        expect_reason(await peer.finish(2), "LENGTH")


@cases.case("session.cancel-one-choice", "Cancel of one choice leaves the request's others.")
async def session_cancel_one_choice(target: Target) -> None:
    """The first of two."""
    async with Peer(target) as peer:
        await peer.greet()
        await peer.submit(1, PROMPT, num_choices=2, max_tokens=200)
        await peer.tokens(1, 1)
        await peer.send(cancels=[pb.Cancel(handle=1)])
        expect_reason(await peer.finish(1), "CANCELLED")
        expect(2 not in peer.finishes, "the other choice ended with it")
        await peer.send(cancels=[pb.Cancel(handle=2)])
        expect_reason(await peer.finish(2), "CANCELLED")


@cases.case("session.cancel-unknown", "Cancel and Credit of unknown and finished handles are ignored.")
async def session_cancel_unknown(target: Target) -> None:
    """Before, after, and never."""
    async with Peer(target) as peer:
        await peer.greet()
        await peer.send(cancels=[pb.Cancel(handle=77)], credits=[pb.Credit(handle=78, tokens=5)])
        await peer.submit(1, PROMPT, max_tokens=2)
        await peer.finish(1)
        await peer.send(cancels=[pb.Cancel(handle=1)], credits=[pb.Credit(handle=1, tokens=5)])
        await peer.submit(90, PROMPT, max_tokens=2)
        expect_reason(await peer.finish(90), "LENGTH")


@cases.case("session.cancel-in-its-frame", "A Cancel in the frame of its Submit takes effect.")
async def session_cancel_in_its_frame(target: Target) -> None:
    """Submits are read before it."""
    async with Peer(target) as peer:
        await peer.greet()
        await peer.send(submits=[peer.made(1, PROMPT)], cancels=[pb.Cancel(handle=1)])
        expect_reason(await peer.finish(1), "CANCELLED")


@cases.case("session.request-id", "Two running requests may not share a request_id; a Cancel gives it free at once.")
async def session_request_id(target: Target) -> None:
    """Twice the same, then after a Cancel in the same frame."""
    async with Peer(target) as peer:
        await peer.greet()
        await peer.submit(1, PROMPT, request_id="conformance")
        await expect_taken(peer, 2)
        again = peer.made(3, PROMPT, request_id="conformance", max_tokens=2)
        await peer.send(submits=[again], cancels=[pb.Cancel(handle=1)])
        expect_reason(await peer.finish(1), "CANCELLED")
        expect_reason(await peer.finish(3), "LENGTH")


@cases.case("session.request-id-choices", "A request_id is held while one of its request's choices was not cancelled.")
async def session_request_id_choices(target: Target) -> None:
    """One of two is taken back, then the other in the frame that uses the id again."""
    async with Peer(target) as peer:
        await peer.greet()
        await peer.submit(1, PROMPT, request_id="conformance", num_choices=2)
        await peer.tokens(1, 1)
        await peer.send(cancels=[pb.Cancel(handle=1)])
        expect_reason(await peer.finish(1), "CANCELLED")
        await expect_taken(peer, 3)
        again = peer.made(4, PROMPT, request_id="conformance", max_tokens=2)
        await peer.send(submits=[again], cancels=[pb.Cancel(handle=2)])
        expect_reason(await peer.finish(2), "CANCELLED")
        expect_reason(await peer.finish(4), "LENGTH")


@cases.case("session.request-id-held", "A request_id is held while its request's end waits for credit, and then free.")
async def session_request_id_held(target: Target) -> None:
    """Two tokens, of which one is granted first."""
    async with Peer(target) as peer:
        await peer.greet()
        await peer.submit(1, PROMPT, request_id="conformance", credit=1, max_tokens=2)
        await peer.submit(2, PROMPT, max_tokens=16)
        await peer.finish(2)
        await expect_taken(peer, 3)
        await peer.credit(1, 1)
        expect_reason(await peer.finish(1), "LENGTH")
        await peer.submit(4, PROMPT, request_id="conformance", max_tokens=2)
        expect_reason(await peer.finish(4), "LENGTH")


async def expect_taken(peer: Peer, handle: int) -> None:
    """Submit under the id of the cases above. Raises CaseFailed unless that is refused."""
    await peer.submit(handle, PROMPT, request_id="conformance", max_tokens=2)
    finish = await peer.finish(handle)
    expect_reason(finish, "ERROR")
    expect_error(from_wire(finish.error), "ALREADY_EXISTS")


@cases.case("session.bad-request", "A bad request is the finish of its own handle, with a typed error; others go on.")
async def session_bad_request(target: Target) -> None:
    """A temperature below zero, and no prompt."""
    async with Peer(target) as peer:
        await peer.greet()
        await peer.send(submits=[
            peer.made(1, PROMPT, temperature=-1.0), peer.made(2, ""), peer.made(3, PROMPT, max_tokens=2),
        ])  # fmt: skip
        expect_reason(await peer.finish(1), "ERROR")
        expect_reason(await peer.finish(2), "ERROR")
        expect_reason(await peer.finish(3), "LENGTH")
        error = from_wire(peer.finishes[1].error)
        expect_error(error, "INVALID_ARGUMENT", field="options.sampling.temperature")
        expect_error(from_wire(peer.finishes[2].error), "INVALID_ARGUMENT")


@cases.case("session.half-close", "After the client half-closes, what runs goes on, and the call then ends with OK.")
async def session_half_close(target: Target) -> None:
    """With something open."""
    async with Peer(target) as peer:
        await peer.greet()
        await peer.submit(1, PROMPT, max_tokens=8)
        await peer.call.done_writing()
        expect_reason(await peer.finish(1), "LENGTH")
        while await peer.read():
            pass
        code = await peer.call.code()
        expect(code.name == "OK", f"the call ended with {code.name}")


@cases.case(
    "session.drain", "After the client's Drain it may still cancel; the call ends with OK when nothing is open."
)
async def session_drain(target: Target) -> None:
    """The way up stays open."""
    async with Peer(target) as peer:
        await peer.greet()
        await peer.submit(1, PROMPT)
        await peer.submit(2, PROMPT, max_tokens=2)
        await peer.send(drain=pb.Drain(reason="conformance"))
        expect_reason(await peer.finish(2), "LENGTH")
        await peer.send(cancels=[pb.Cancel(handle=1)])
        expect_reason(await peer.finish(1), "CANCELLED")
        while await peer.read():
            pass
        code = await peer.call.code()
        expect(code.name == "OK", f"the call ended with {code.name}")


@cases.case("session.broken", "A stream that breaks takes its requests back: the server can answer afterwards.")
async def session_broken(target: Target) -> None:
    """Many streams broken under load."""
    for _ in range(5):
        async with Peer(target) as peer:
            await peer.greet()
            await peer.send(submits=[peer.made(i + 1, f"{PROMPT} {i}") for i in range(16)])
            await peer.until(lambda peer=peer: bool(peer.num_tokens))  # type: ignore[misc]
    await session_submits(target)
