"""The Python client: `Client` for ordinary code, `AsyncClient` for asyncio; errors are `tokenwire.errors`.

    with Client("127.0.0.1:50051") as client:
        print(client.chat("What is the capital of France?", temperature=0).text())

        for event in client.generate("Once upon a time", "In the beginning", max_tokens=32):
            match event:
                case TextDelta(text=text, index=index): ...
                case Finished(terminal=terminal): ...

    Client("gateway.example:50051", api_key="…", tls=ClientTls(ca="ca.pem"))      # or ClientTls(): this machine's CAs

Knows only the gateway's contract: no tokenizer, no model.
"""

from tokenwire.client.clients import AsyncClient, Client
from tokenwire.client.conversations import ChatOptions
from tokenwire.client.embeddings import Embeddings, EmbedOptions
from tokenwire.client.events import (
    Encoding,
    Event,
    Finished,
    Message,
    ModelCard,
    Output,
    RenderedPrompt,
    TextDelta,
    TokenizerFiles,
    Tool,
)
from tokenwire.client.options import CallOptions
from tokenwire.client.session_outputs import AsyncSessionOutputs, BlockingSessionOutputs
from tokenwire.client.sessions import AsyncSession, Session
from tokenwire.client.streams import AsyncStream, Stream
from tokenwire.parsed import ToolCall
from tokenwire.requests import FinishReason, Terminal, TokenLogprob, Usage
from tokenwire.tls import ClientTls

__all__ = [
    "AsyncClient",
    "AsyncSession",
    "AsyncSessionOutputs",
    "AsyncStream",
    "BlockingSessionOutputs",
    "CallOptions",
    "ChatOptions",
    "Client",
    "ClientTls",
    "EmbedOptions",
    "Embeddings",
    "Encoding",
    "Event",
    "FinishReason",
    "Finished",
    "Message",
    "ModelCard",
    "Output",
    "RenderedPrompt",
    "Session",
    "Stream",
    "Terminal",
    "TextDelta",
    "TokenLogprob",
    "TokenizerFiles",
    "Tool",
    "ToolCall",
    "Usage",
]
