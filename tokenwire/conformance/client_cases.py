"""What a client program is told to do with calls, and what is checked of it; docs/conformance.md says the same."""

from typing import Any

from tokenwire.conformance.client_expectations import expect_calls, expect_error, expect_told
from tokenwire.conformance.client_program import ClientProgram
from tokenwire.conformance.results import Cases, expect
from tokenwire.conformance.scripted_words import FIELD, RETRY_AFTER_S

cases: Cases[ClientProgram] = Cases()


@cases.case("generate", "Generate 'one two three' with temperature 0 and max_tokens 3.")
async def generate(client: ClientProgram) -> None:
    """Zero must be said."""
    seen, told = await client.run("generate")
    expect_calls(seen, generates=1)
    check_options(seen.generates[0].options, 3)
    told.expect_texts("one two three")
    expect_told(told.output(0), reason="LENGTH", tokens=3)


@cases.case("prompts", "Generate two prompts in one call: 'one two' and 'lost one'.")
async def prompts(client: ClientProgram) -> None:
    """The second one fails by itself."""
    seen, told = await client.run("prompts")
    expect_calls(seen, generates=1)
    told.expect_texts("one two", "lost")
    expect_told(told.output(0), reason="STOP_TOKEN")
    expect_told(told.output(1), reason="ERROR")
    expect_error(told.output(1).get("error"), code="UNAVAILABLE", reason="MODEL_TIER_LOST")


@cases.case("chat", "Chat: system 'Be brief.', user 'one two three'; temperature 0, max_tokens 3.")
async def chat(client: ClientProgram) -> None:
    """Roles and order."""
    seen, told = await client.run("chat")
    expect_calls(seen, chats=1)
    found = [(message.role, message.content) for message in seen.chats[0].conversation.messages]
    wanted = [("system", "Be brief."), ("user", "one two three")]
    expect(found == wanted, f"the conversation was {found}")
    check_options(seen.chats[0].options, 3)
    told.expect_texts("one two three")


@cases.case("bad-field", "Generate 'refuse me'; tell of the error with its reason and fields.")
async def bad_field(client: ClientProgram) -> None:
    """Details are read back."""
    seen, told = await client.run("bad-field")
    expect_calls(seen, generates=1)
    expect_error(told.error, code="INVALID_ARGUMENT", reason="INVALID_REQUEST", fields=[FIELD])


@cases.case("overloaded", "Generate 'overload me' once; tell of the error with its retry_after_ms.")
async def overloaded(client: ClientProgram) -> None:
    """RetryInfo is read back, and nobody hurries."""
    seen, told = await client.run("overloaded")
    expect_error(told.error, code="RESOURCE_EXHAUSTED", reason="QUEUE_FULL", retry_after_ms=RETRY_AFTER_S * 1000)
    expect_calls(seen, generates=1)


@cases.case("deadline", "Generate 'hang on' with a deadline of two seconds; tell of the error.")
async def deadline(client: ClientProgram) -> None:
    """The call's own limit."""
    seen, told = await client.run("deadline")
    expect_calls(seen, generates=1)
    limited = seen.had_deadline or any(request.context.HasField("timeout_ms") for request in seen.generates)
    expect(limited, "the call came without a deadline")
    expect_error(told.error, code="DEADLINE_EXCEEDED")


@cases.case("deadline-text", "Generate 'slow words'; the server ends it with the reason DEADLINE.")
async def deadline_text(client: ClientProgram) -> None:
    """What came stands."""
    seen, told = await client.run("deadline-text")
    expect_calls(seen, generates=1)
    told.expect_texts("slow")
    expect_told(told.output(0), reason="DEADLINE")


@cases.case("cancel", "Generate 'hang on'; cancel the call after its first text; tell of the error.")
async def cancel(client: ClientProgram) -> None:
    """And the server hears of it."""
    seen, told = await client.run("cancel")
    expect_calls(seen, generates=1)
    expect_error(told.error, code="CANCELLED")
    expect(seen.cancelled, "the server saw no cancellation")


@cases.case(
    "tls",
    "Generate 'one two three' over TLS (--tls-ca) with the API key (--api-key) as a bearer token.",
    optional=True,
)
async def tls(client: ClientProgram) -> None:
    """Who calls, and to whom."""
    seen, told = await client.run("tls", tls=True, key=True)
    expect_calls(seen, generates=1)
    told.expect_texts("one two three")


@cases.case(
    "key",
    "Generate 'one two three' with the API key (--api-key) without TLS: it stays on this machine.",
    optional=True,
)
async def key(client: ClientProgram) -> None:
    """What nobody can read on the way."""
    seen, told = await client.run("key", key=True)
    expect_calls(seen, generates=1)
    told.expect_texts("one two three")


def check_options(options: Any, max_tokens: int) -> None:
    """Raise CaseFailed unless temperature is there and 0, and max_tokens as it was told."""
    expect(options.sampling.HasField("temperature"), "temperature is absent: zero must be sent as zero")
    expect(options.sampling.temperature == 0, f"temperature is {options.sampling.temperature}")
    expect(options.stop.max_tokens == max_tokens, f"max_tokens is {options.stop.max_tokens}")
