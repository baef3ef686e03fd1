"""What the load generator needs of a client, and which client speaks which API. Loads a client only when asked."""

from importlib import import_module
from typing import Any, Protocol

from benchmarks.loadgen.records import Record
from benchmarks.loadgen.work import Work

CLIENTS = {
    "session": ("benchmarks.loadgen.grpc_session", "SessionStreamClient"),
    "grpc": ("benchmarks.loadgen.grpc_generate", "GenerateClient"),
    "http": ("benchmarks.loadgen.http_completions", "CompletionsClient"),
    "chat": ("benchmarks.loadgen.http_chat", "ChatClient"),
    "tokens": ("benchmarks.loadgen.grpc_tokens", "TokenSessionClient"),
    "pipe": ("benchmarks.loadgen.pipe", "PipeClient"),
}
"""API → module and class. session: one bidi stream for all; grpc: a server stream per request; http: OpenAI's
/v1/completions, streamed; chat: /v1/chat/completions, whose events are counted and not read; tokens: a session with a
model tier itself; pipe: a program that answers on its standard output (a model in process)."""


class LoadClient(Protocol):
    """Asks one server. `open` before, `close` after; `ask` may run many times side by side."""

    async def open(self) -> None:
        """Connect."""

    async def ask(self, prompt: list[int] | str, record: Record) -> None:
        """Send one request and fill `record` in until its end. Raises what fails."""

    async def close(self) -> None:
        """Disconnect."""


def client_of(api: str, target: str, model: str, work: Work, dialect: str = "openai") -> LoadClient:
    """A client that is not yet open. `target`: host:port; for `pipe` a command line."""
    if api not in CLIENTS:
        raise ValueError(f"--api {api}: one of {', '.join(CLIENTS)}")
    module, name = CLIENTS[api]
    made: Any = getattr(import_module(module), name)
    client: LoadClient = made(target, model, work, dialect) if api == "http" else made(target, model, work)
    return client
