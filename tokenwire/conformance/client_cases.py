"""What a client program is told to do, case by case, and what is checked of it; docs/conformance.md says the same."""

from typing import Any

from tokenwire.conformance.client_program import ClientProgram
from tokenwire.conformance.results import Cases, expect
from tokenwire.conformance.scripted import Seen
from tokenwire.conformance.scripted_sequence import Sequence
from tokenwire.conformance.scripted_words import FIELD, RETRY_AFTER_S, Script

cases: Cases[ClientProgram] = Cases()
MANY, MOST_OPEN, NUM_WAVES = 1000, 50, 4
WINDOW = 2
LETTERS = "a b c d e f g h i j"


@cases.case("generate", "Generate 'one two three' with temperature 0 and max_tokens 3.")
async def generate(client: ClientProgram) -> None:
    """Zero must be said."""
    seen, told = await client.run("generate")
    expect(len(seen.generates) == 1, f"{len(seen.generates)} calls of Generate came, not one")
    check_options(seen.generates[0].options, 3)
    told.expect_texts("one two three")
    expect_told(told.output(0), reason="LENGTH", tokens=3)


@cases.case("prompts", "Generate two prompts in one call: 'one two' and 'lost one'.")
async def prompts(client: ClientProgram) -> None:
    """The second one fails by itself."""
    seen, told = await client.run("prompts")
    expect(len(seen.generates) == 1, f"{len(seen.generates)} calls of Generate came, not one")
    told.expect_texts("one two", "lost")
    expect_told(told.output(0), reason="STOP_TOKEN")
    expect_told(told.output(1), reason="ERROR")
    expect_error(told.output(1).get("error"), code="UNAVAILABLE", reason="MODEL_TIER_LOST")


@cases.case("chat", "Chat: system 'Be brief.', user 'one two three'; temperature 0, max_tokens 3.")
async def chat(client: ClientProgram) -> None:
    """Roles and order."""
    seen, told = await client.run("chat")
    expect(len(seen.chats) == 1, f"{len(seen.chats)} calls of Chat came, not one")
    found = [(message.role, message.content) for message in seen.chats[0].conversation.messages]
    wanted = [("system", "Be brief."), ("user", "one two three")]
    expect(found == wanted, f"the conversation was {found}")
    check_options(seen.chats[0].options, 3)
    told.expect_texts("one two three")


@cases.case("bad-field", "Generate 'refuse me'; tell of the error with its reason and fields.")
async def bad_field(client: ClientProgram) -> None:
    """Details are read back."""
    _, told = await client.run("bad-field")
    expect_error(told.error, code="INVALID_ARGUMENT", reason="INVALID_REQUEST", fields=[FIELD])


@cases.case("overloaded", "Generate 'overload me' once; tell of the error with its retry_after_ms.")
async def overloaded(client: ClientProgram) -> None:
    """RetryInfo is read back, and nobody hurries."""
    seen, told = await client.run("overloaded")
    expect_error(told.error, code="RESOURCE_EXHAUSTED", reason="QUEUE_FULL", retry_after_ms=RETRY_AFTER_S * 1000)
    expect(len(seen.generates) == 1, f"{len(seen.generates)} calls came within the time to wait")


@cases.case("deadline", "Generate 'hang on' with a deadline of two seconds; tell of the error.")
async def deadline(client: ClientProgram) -> None:
    """The call's own limit."""
    seen, told = await client.run("deadline")
    limited = seen.had_deadline or any(request.context.HasField("timeout_ms") for request in seen.generates)
    expect(limited, "the call came without a deadline")
    expect_error(told.error, code="DEADLINE_EXCEEDED")


@cases.case("deadline-text", "Generate 'slow words'; the server ends it with the reason DEADLINE.")
async def deadline_text(client: ClientProgram) -> None:
    """What came stands."""
    _, told = await client.run("deadline-text")
    told.expect_texts("slow")
    expect_told(told.output(0), reason="DEADLINE")


@cases.case("cancel", "Generate 'hang on'; cancel the call after its first text; tell of the error.")
async def cancel(client: ClientProgram) -> None:
    """And the server hears of it."""
    seen, told = await client.run("cancel")
    expect_error(told.error, code="CANCELLED")
    expect(seen.cancelled, "the server saw no cancellation")


@cases.case("session", "On one Session: 'one two', 'three', 'four five six'.")
async def session(client: ClientProgram) -> None:
    """Rows of several handles in a frame."""
    seen, told = await client.run("session")
    expect(len(seen.sessions) == 1, f"{len(seen.sessions)} sessions came, not one")
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
    _, told = await client.run("session-error")
    expect_told(told.output(0), reason="ERROR")
    expect_error(told.output(0).get("error"), code="INVALID_ARGUMENT", reason="INVALID_REQUEST", fields=[FIELD])
    expect_error(told.output(1).get("error"), code="RESOURCE_EXHAUSTED", retry_after_ms=RETRY_AFTER_S * 1000)
    expect(told.output(2).get("text") == "one two", f"output 2 was told as {told.output(2).get('text')!r}")


@cases.case("session-drain", "On a Session: 'hold on'; the server sends Drain: submit 'one two' on a new one.")
async def session_drain(client: ClientProgram) -> None:
    """The old stream runs out beside the new one."""
    seen, told = await client.run("session-drain", Script(drains=True))
    expect(len(seen.sessions) == 2, f"{len(seen.sessions)} sessions came, not two")
    texts = [[submit.request.text for submit in each.submits] for each in seen.sessions]
    expect(texts == [["hold on"], ["one two"]], f"the streams were sent {texts}")
    told.expect_texts("hold on", "one two")


@cases.case("session-lost", "On one Session: 'hold on'; the stream breaks: tell of the output with its error.")
async def session_lost(client: ClientProgram) -> None:
    """Nobody waits for ever."""
    _, told = await client.run("session-lost", Script(breaks=True))
    expect(told.output(0).get("text") == "hold", f"output 0 was told as {told.output(0).get('text')!r}")
    expect_error(told.output(0).get("error"), code="UNAVAILABLE")


@cases.case("session-future", "On one Session: 'one two', 'three', though frames hold what the client cannot know.")
async def session_future(client: ClientProgram) -> None:
    """Unknown fields are ignored, and an unknown reason is an end."""
    _, told = await client.run("session-future", Script(future=True))
    told.expect_texts("one two", "three")


@cases.case("session-many", f"On one Session: 'n0' to 'n{MANY - 1}', never more open than hello's max_requests.")
async def session_many(client: ClientProgram) -> None:
    """Room is kept by the client."""
    seen, told = await client.run("session-many", Script(max_requests=MOST_OPEN, num_waves=NUM_WAVES))
    expect(len(seen.sessions) == 1, f"{len(seen.sessions)} sessions came, not one")
    told.expect_texts(*(f"n{number}" for number in range(MANY)))


@cases.case("tls", "Generate 'one two three' over TLS (--tls-ca) with the API key (--api-key) as a bearer token.")
async def tls(client: ClientProgram) -> None:
    """Who calls, and to whom."""
    _, told = await client.run("tls", tls=True)
    told.expect_texts("one two three")


def check_options(options: Any, max_tokens: int) -> None:
    """Raise CaseFailed unless temperature is there and 0, and max_tokens as it was told."""
    expect(options.sampling.HasField("temperature"), "temperature is absent: zero must be sent as zero")
    expect(options.sampling.temperature == 0, f"temperature is {options.sampling.temperature}")
    expect(options.stop.max_tokens == max_tokens, f"max_tokens is {options.stop.max_tokens}")


def submits(seen: Seen, number: int) -> list[Any]:
    """The Submits of the only session. Raises CaseFailed."""
    expect(len(seen.sessions) == 1, f"{len(seen.sessions)} sessions came, not one")
    found = seen.sessions[0].submits
    expect(len(found) == number, f"{len(found)} Submits came, not {number}")
    return found


def sequences(seen: Seen) -> list[Sequence]:
    """The sequences of the only session."""
    expect(len(seen.sessions) == 1, f"{len(seen.sessions)} sessions came, not one")
    return list(seen.sessions[0].sequences.values())


def expect_told(output: dict[str, Any], *, reason: str, tokens: int | None = None) -> None:
    """Raise CaseFailed unless an output was told so."""
    expect(output.get("reason") == reason, f"reason was told as {output.get('reason')!r}, sent was {reason}")
    if tokens is not None:
        expect(output.get("tokens") == tokens, f"tokens were told as {output.get('tokens')!r}, usage says {tokens}")


def expect_error(
    error: Any, *, code: str, reason: str = "", fields: list[str] | None = None, retry_after_ms: float | None = None
) -> None:
    """Raise CaseFailed unless an error was told so."""
    expect(isinstance(error, dict), f"no error was told, sent was {code}")
    expect(error.get("code") == code, f"the error's code was told as {error.get('code')!r}, not {code}")
    expect(not reason or error.get("reason") == reason, f"its reason was told as {error.get('reason')!r}, not {reason}")
    if fields is not None:
        expect(error.get("fields") == fields, f"its fields were told as {error.get('fields')!r}, not {fields}")
    if retry_after_ms is not None:
        told = error.get("retry_after_ms")
        expect(told == retry_after_ms, f"its retry_after_ms was told as {told!r}, not {retry_after_ms:g}")
