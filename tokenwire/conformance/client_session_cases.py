"""What a client program is told to do on Sessions, and what is checked of it; docs/conformance.md says the same."""

from typing import Any

from tokenwire.conformance.client_expectations import (
    expect_error,
    expect_out_of_time,
    expect_streams,
    expect_told,
)
from tokenwire.conformance.client_program import ClientProgram
from tokenwire.conformance.results import Cases, expect
from tokenwire.conformance.scripted import Seen
from tokenwire.conformance.scripted_sequence import Sequence
from tokenwire.conformance.scripted_words import FIELD, RETRY_AFTER_S, Script

cases: Cases[ClientProgram] = Cases()
MANY, MOST_OPEN, NUM_WAVES = 1000, 50, 4
WINDOW = 2
NUM_LARGE = 40
TIME_LIMIT_MS = 1000
LETTERS = "a b c d e f g h i j"


@cases.case("session", "On one Session: 'one two', 'three', 'four five six'.")
async def session(client: ClientProgram) -> None:
    """Rows of several handles in a frame."""
    seen, told = await client.run("session")
    expect(len(seen.sessions) == 1, f"{len(seen.sessions)} sessions came, not 1")
    told.expect_texts("one two", "three", "four five six")
    for index, tokens in enumerate((2, 1, 3)):
        expect_told(told.output(index), reason="STOP_TOKEN", tokens=tokens)


@cases.case("session-choices", "On one Session: 'one two' with num_choices 2, then 'three'.")
async def session_choices(client: ClientProgram) -> None:
    """Handles of choices are taken."""
    seen, told = await client.run("session-choices")
    (first, second) = submits(seen, 2)
    expect(first.request.options.num_choices == 2, f"num_choices is {first.request.options.num_choices}")
    expect(second.handle >= first.handle + 2, "the second Submit's handle belongs to a choice of the first")
    for key, text in (((0, 0), "one two"), ((0, 1), "one two"), ((1, 0), "three")):
        found = told.output(*key).get("text")
        expect(found == text, f"output {key} was told as {found!r}")


@cases.case("session-cancel", "On one Session: 'hang on', 'one two three'; cancel the first after its first text.")
async def session_cancel(client: ClientProgram) -> None:
    """A row crosses with the Cancel."""
    seen, told = await client.run("session-cancel")
    first, _ = submits(seen, 2)
    cancels = [handle for what, handle in seen.sessions[0].events if what == "cancel"]
    expect(cancels == [first.handle], f"Cancels came for {cancels}, not for {first.handle}")
    expect_told(told.output(0), reason="CANCELLED")
    found = told.output(0).get("text")
    expect(found in ("hang", "hang late"), f"output 0 was told as {found!r}")
    expect(told.output(1).get("text") == "one two three", f"output 1 was told as {told.output(1).get('text')!r}")


@cases.case("session-leave", "On one Session, one at a time: 'hang on', left after its first text; then 'one two'.")
async def session_leave(client: ClientProgram) -> None:
    """What nobody reads any more makes room."""
    seen, told = await client.run("session-leave", Script(max_requests=1))
    first, _ = submits(seen, 2)
    expect(("cancel", first.handle) in seen.sessions[0].events, "no Cancel came for the first")
    expect(told.output(1).get("text") == "one two", f"output 1 was told as {told.output(1).get('text')!r}")


@cases.case("session-credit", f"On one Session: '{LETTERS}' with initial_credit {WINDOW}; grant what was read.")
async def session_credit(client: ClientProgram) -> None:
    """A window that moves."""
    seen, told = await client.run("session-credit", Script(most_ungranted=WINDOW))
    (sequence,) = sequences(seen)
    expect(sequence.initial_credit == WINDOW, f"initial_credit is {sequence.initial_credit}, not {WINDOW}")
    least = len(LETTERS.split()) - WINDOW
    expect(sum(sequence.granted) >= least, f"Credits of {sum(sequence.granted)} tokens came, {least} were needed")
    told.expect_texts(LETTERS)


@cases.case("session-held", "On one Session: 'a b' with initial_credit 0, 'one two three'; when that ends, grant 2.")
async def session_held(client: ClientProgram) -> None:
    """Nobody waits for it."""
    seen, told = await client.run("session-held")
    held, other = submits(seen, 2)
    events = seen.sessions[0].events
    expect(("credit", held.handle) in events, "no Credit came for the first")
    in_order = events.index(("finish", other.handle)) < events.index(("credit", held.handle))
    expect(in_order, "the Credit came before the other had ended")
    expect(held.HasField("initial_credit") and held.initial_credit == 0, "initial_credit is not 0")
    told.expect_texts("a b", "one two three")


@cases.case("session-error", "On one Session: 'refuse me', 'overload me', 'one two'; tell of each.")
async def session_error(client: ClientProgram) -> None:
    """Errors are their request's own."""
    seen, told = await client.run("session-error")
    expect_streams(seen, ["refuse me", "overload me", "one two"])
    expect_told(told.output(0), reason="ERROR")
    expect_error(told.output(0).get("error"), code="INVALID_ARGUMENT", reason="INVALID_REQUEST", fields=[FIELD])
    expect_error(told.output(1).get("error"), code="RESOURCE_EXHAUSTED", retry_after_ms=RETRY_AFTER_S * 1000)
    expect(told.output(2).get("text") == "one two", f"output 2 was told as {told.output(2).get('text')!r}")


@cases.case("session-drain", "On a Session: 'hold on'; the server sends Drain: submit 'one two' on a new one.")
async def session_drain(client: ClientProgram) -> None:
    """The old stream runs out beside the new one."""
    seen, told = await client.run("session-drain", Script(drains=True))
    expect_streams(seen, ["hold on"], ["one two"])
    told.expect_texts("hold on", "one two")


@cases.case("session-lost", "On one Session: 'hold on'; the stream breaks: tell of the output with its error.")
async def session_lost(client: ClientProgram) -> None:
    """Nobody waits for ever."""
    seen, told = await client.run("session-lost", Script(breaks=True))
    expect(bool(seen.sessions), "0 sessions came")
    expect_streams(Seen(sessions=seen.sessions[:1]), ["hold on"])
    expect(told.output(0).get("text") == "hold", f"output 0 was told as {told.output(0).get('text')!r}")
    expect_error(told.output(0).get("error"), code="UNAVAILABLE")


@cases.case("session-future", "On one Session: 'one two', 'three', though frames hold what the client cannot know.")
async def session_future(client: ClientProgram) -> None:
    """Unknown fields are ignored, and an unknown reason is an end."""
    seen, told = await client.run("session-future", Script(future=True))
    expect_streams(seen, ["one two", "three"])
    told.expect_texts("one two", "three")


@cases.case("session-many", f"On one Session: 'n0' to 'n{MANY - 1}', never more open than hello's max_requests.")
async def session_many(client: ClientProgram) -> None:
    """Room is kept by the client."""
    seen, told = await client.run("session-many", Script(max_requests=MOST_OPEN, num_waves=NUM_WAVES))
    expect(len(seen.sessions) == 1, f"{len(seen.sessions)} sessions came, not 1")
    told.expect_texts(*(f"n{number}" for number in range(MANY)))


@cases.case("session-large", f"On one Session, at once: {NUM_LARGE} times 'slow ' and a million x.")
async def session_large(client: ClientProgram) -> None:
    """No frame is larger than a message may be."""
    seen, told = await client.run("session-large")
    submits(seen, NUM_LARGE)
    told.expect_texts(*["slow"] * NUM_LARGE)


@cases.case("session-too-many-choices", "On one Session: 'one two' with num_choices 129, then 'three'; tell of each.")
async def session_too_many_choices(client: ClientProgram) -> None:
    """By whomever it is refused, nobody waits for choices that never are."""
    seen, told = await client.run("session-too-many-choices")
    expect_error(told.output(0).get("error"), code="INVALID_ARGUMENT", reason="INVALID_REQUEST")
    expect(len(seen.sessions) == 1, f"{len(seen.sessions)} sessions came, not 1")
    texts = [submit.request.text for submit in seen.sessions[0].submits]
    expect(texts in (["three"], ["one two", "three"]), f"the stream was sent {texts}")
    expect(told.output(1).get("text") == "three", f"output 1 was told as {told.output(1).get('text')!r}")


@cases.case(
    "session-bad-text", "On one Session: 'one two' with what is no Unicode behind it, then 'three'; tell of each."
)
async def session_bad_text(client: ClientProgram) -> None:
    """Sent, it would end the stream and what else is on it."""
    seen, told = await client.run("session-bad-text")
    expect_error(told.output(0).get("error"), code="INVALID_ARGUMENT", reason="INVALID_REQUEST", fields=["text"])
    expect(told.output(1).get("text") == "three", f"output 1 was told as {told.output(1).get('text')!r}")
    submits(seen, 1)


@cases.case("session-time-limit", "On one Session: 'one', then 'mute' with timeout_ms 1000; nothing comes for it.")
async def session_time_limit(client: ClientProgram) -> None:
    """The client has a clock too."""
    seen, told = await client.run("session-time-limit")
    _, submit = submits(seen, 2)
    timeout_ms = submit.request.context.timeout_ms
    expect(0 < timeout_ms <= TIME_LIMIT_MS, f"timeout_ms is {timeout_ms}, not {TIME_LIMIT_MS} or what was left of it")
    expect_out_of_time(told.output(1))


@cases.case("session-no-hello", "On a Session, to which no Hello comes: 'one two' with timeout_ms 5000.")
async def session_no_hello(client: ClientProgram) -> None:
    """Time runs while a stream is opened."""
    seen, told = await client.run("session-no-hello", Script(greets=False))
    expect(bool(seen.sessions), "0 sessions came")
    expect_out_of_time(told.output(0))


@cases.case(
    "session-overrun", "On a Session: 'overrun' with initial_credit 2; a row of 100 tokens comes; then 'one two'."
)
async def session_overrun(client: ClientProgram) -> None:
    """A client holds what it granted, and no more; the stream has ended before the second is answered."""
    seen, told = await client.run("session-overrun")
    expect_error(told.output(0).get("error"), code="INTERNAL")
    expect_streams(seen, ["overrun"], ["one two"])
    expect(told.output(1).get("text") == "one two", f"output 1 was told as {told.output(1).get('text')!r}")


@cases.case(
    "session-bad-frame", "On a Session: 'crooked'; a frame comes whose columns differ in length; then 'one two'."
)
async def session_bad_frame(client: ClientProgram) -> None:
    """It is not read beyond its end; the stream has ended before the second is answered."""
    seen, told = await client.run("session-bad-frame")
    expect_error(told.output(0).get("error"), code="INTERNAL")
    expect_streams(seen, ["crooked"], ["one two"])
    expect(told.output(1).get("text") == "one two", f"output 1 was told as {told.output(1).get('text')!r}")


def submits(seen: Seen, number: int) -> list[Any]:
    """The Submits of the only session. Raises CaseFailed."""
    expect(len(seen.sessions) == 1, f"{len(seen.sessions)} sessions came, not 1")
    found = seen.sessions[0].submits
    expect(len(found) == number, f"{len(found)} Submits came, not {number}")
    return found


def sequences(seen: Seen) -> list[Sequence]:
    """The sequences of the only session."""
    expect(len(seen.sessions) == 1, f"{len(seen.sessions)} sessions came, not 1")
    return list(seen.sessions[0].sequences.values())
