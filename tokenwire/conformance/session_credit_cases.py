"""What the contract says of credits and time limits on a Session: docs/session.md."""

from tokenwire.conformance.peer import Peer
from tokenwire.conformance.results import Cases, CaseSkipped, expect
from tokenwire.conformance.target import PROMPT, Target, expect_reason, reason_name
from tokenwire.v1 import common_pb2 as pb

cases: Cases[Target] = Cases()


@cases.case("session.credit", "No more tokens are sent than were granted; a Credit adds to them.")
async def session_credit(target: Target) -> None:
    """Three, five, all."""
    async with Peer(target) as peer:
        await peer.greet()
        await peer.submit(1, PROMPT, credit=3, max_tokens=8)
        await peer.tokens(1, 3)
        await peer.submit(2, PROMPT, max_tokens=16)
        await peer.finish(2)
        await peer.credit(1, 2)
        await peer.tokens(1, 5)
        await peer.credit(1, 50)
        expect_reason(await peer.finish(1), "LENGTH")


@cases.case(
    "session.no-credit", "A sequence without credit sends nothing, slows nobody, and its finish waits for its text."
)
async def session_no_credit(target: Target) -> None:
    """The others overtake it."""
    async with Peer(target) as peer:
        await peer.greet()
        await peer.submit(1, PROMPT, credit=0, max_tokens=2)
        await peer.send(submits=[peer.made(handle, PROMPT, max_tokens=16) for handle in (2, 3, 4)])
        await peer.until(lambda: len(peer.finishes) == 3)
        expect(1 not in peer.finishes, "the finish did not wait for the text")
        expect(not peer.texts.get(1), f"text came without credit: {peer.texts.get(1)!r}")
        await peer.credit(1, 2)
        expect_reason(await peer.finish(1), "LENGTH")


@cases.case("session.credit-cancel", "Cancel needs no credit: the text that waits is dropped.")
async def session_credit_cancel(target: Target) -> None:
    """Of one that waits, finished or not."""
    async with Peer(target) as peer:
        await peer.greet()
        await peer.submit(1, PROMPT, credit=0, max_tokens=2)
        await peer.submit(2, PROMPT, max_tokens=16)
        await peer.finish(2)
        await peer.send(cancels=[pb.Cancel(handle=1)])
        expect_reason(await peer.finish(1), "CANCELLED")


@cases.case("session.timeout", "DEADLINE waits for no credit.")
async def session_timeout(target: Target) -> None:
    """One with and one without credit run out of time."""
    async with Peer(target) as peer:
        await peer.greet()
        await peer.submit(1, PROMPT, credit=0, timeout_ms=400)
        await peer.submit(2, PROMPT, timeout_ms=400)
        first, second = await peer.finish(1), await peer.finish(2)
        if reason_name(second) == "LENGTH":
            raise CaseSkipped("the whole context was generated within 400 ms")
        expect_reason(first, "DEADLINE")
        expect_reason(second, "DEADLINE")


@cases.case("session.timeout-held", "An end that waits for credit becomes DEADLINE when its time is over.")
async def session_timeout_held(target: Target) -> None:
    """Two of five tokens are granted, and no more."""
    async with Peer(target) as peer:
        await peer.greet()
        await peer.submit(1, PROMPT, credit=2, max_tokens=5, timeout_ms=1000)
        await peer.submit(2, PROMPT, credit=5, max_tokens=5)
        expect_reason(await peer.finish(2), "LENGTH")
        expect_reason(await peer.finish(1), "DEADLINE")


@cases.case("session.no-time", "A timeout_ms of 0 is no time at all: DEADLINE, and no text.")
async def session_no_time(target: Target) -> None:
    """Absent is another matter."""
    async with Peer(target) as peer:
        await peer.greet()
        await peer.submit(1, PROMPT, max_tokens=5, timeout_ms=0)
        expect_reason(await peer.finish(1), "DEADLINE")
        expect(not peer.num_tokens.get(1), f"{peer.num_tokens.get(1)} tokens came")
