"""`Client` and `AsyncClient`: the gateway's calls as methods.

Both only start calls on their kind of channel; requests, answers and errors are made by the shared functions of
`messages.py`. What is tried again is the transport's business (`retries.py`).
"""

import asyncio
from collections.abc import Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Self, Unpack

import grpc

from tokenwire.bearer import bearer
from tokenwire.channels import aio_channel, sync_channel, told_to_move
from tokenwire.client import messages as m
from tokenwire.client.conversations import ChatOptions, chat_parts, conversation_of
from tokenwire.client.embeddings import Embeddings, EmbedOptions, embed_request, embeddings
from tokenwire.client.events import Encoding, Message, ModelCard, Prompt, RenderedPrompt, TokenizerFiles, Tool
from tokenwire.client.open_stub import OpenStub
from tokenwire.client.options import CallOptions
from tokenwire.client.retries import retry_options
from tokenwire.client.sessions import AsyncSession, Session
from tokenwire.client.streams import AsyncStream, Stream
from tokenwire.errors import FailedPrecondition
from tokenwire.forks import grpc_is_lost
from tokenwire.status import from_rpc_error
from tokenwire.tls import ClientTls

DEFAULT_TARGET = "127.0.0.1:50051"
UNARY_TIMEOUT_S = 30.0
DEFAULT_ATTEMPTS = 3


class Client:
    """A gateway, for ordinary code; may be shared by threads. Close it, or use it in a `with` block."""

    def __init__(
        self,
        target: str = DEFAULT_TARGET,
        *,
        api_key: str = "",
        tls: ClientTls | None = None,
        max_attempts: int = DEFAULT_ATTEMPTS,
        plaintext_key: bool = False,
    ) -> None:
        """`api_key`: an API key or a JWT, sent with every call. `tls`: None: without; its files are read here, once.

        `max_attempts`: how often a call that no server has taken is tried, with growing pauses; 1 to 5.
        `plaintext_key`: send the key without TLS to other machines too, as behind a mesh's sidecar. Raises
        FailedPrecondition for TLS files that cannot be used, and for a key that would be sent so without this.
        """
        self.target = target
        self._metadata = bearer(api_key, target, tls, plaintext_key)
        self._tls = tls
        self._channel = sync_channel(target, tls, retry_options(max_attempts))
        self._stub = OpenStub(self._channel, target)

    def generate(self, *prompts: Prompt, **options: Unpack[CallOptions]) -> Stream:
        """Continue one prompt, or several at once whose events carry `index`. Raises InvalidRequest."""
        sent = m.generate_call(prompts, options)
        return Stream(sent, self._stub.Generate(sent.request, timeout=sent.timeout_s, metadata=self._metadata))

    def chat(self, messages: str | Sequence[Message], **options: Unpack[ChatOptions]) -> Stream:
        """Answer a conversation, or one message of a user. `ChatOptions` says what it takes. Raises InvalidRequest."""
        sent = m.chat_call(*chat_parts(messages, options))
        return Stream(sent, self._stub.Chat(sent.request, timeout=sent.timeout_s, metadata=self._metadata))

    def session(self, *, max_open: int = 1024) -> Session:
        """One stream for very many requests, at most `max_open` outputs of them open at once. Close it."""
        self._stub.refuse_closed()
        return Session(self.target, self._metadata, self._tls, max_open)

    def tokenize(
        self,
        *texts: str,
        model: str = "",
        add_special_tokens: bool = True,
        return_offsets: bool = False,
        split_special_tokens: bool = False,
    ) -> list[Encoding]:
        """The token ids of each text. `split_special_tokens`: what stands for special tokens is plain text."""
        request = m.tokenize_request(texts, model, add_special_tokens, return_offsets, split_special_tokens)
        return m.encodings(self._unary(self._stub.Tokenize, request))

    def detokenize(
        self,
        *sequences: Sequence[int],
        model: str = "",
        skip_special_tokens: bool = True,
        spaces_between_special_tokens: bool = True,
    ) -> list[str]:
        """The text of each sequence of token ids."""
        request = m.detokenize_request(sequences, model, skip_special_tokens, spaces_between_special_tokens)
        return m.detokenized(self._unary(self._stub.Detokenize, request))

    def apply_chat_template(
        self,
        messages: str | Sequence[Message],
        *,
        model: str = "",
        tokenize: bool = False,
        split_special_tokens: bool = False,
        tools: Sequence[Tool] = (),
        template_arguments: Mapping[str, Any] | None = None,
        documents: Sequence[Mapping[str, Any]] = (),
        add_generation_prompt: bool | None = None,
        continue_final_message: bool = False,
    ) -> RenderedPrompt:
        """A conversation, or one message of a user, as the prompt that `chat` would send. Parameters as there."""
        conversation = conversation_of(
            messages,
            tools=tools,
            template_arguments=template_arguments,
            documents=documents,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
        )
        request = m.apply_template_request(conversation, model, tokenize, split_special_tokens)
        return m.rendered(self._unary(self._stub.ApplyChatTemplate, request))

    def count_tokens(
        self,
        *texts: str,
        conversations: Sequence[Sequence[Message]] = (),
        model: str = "",
        add_special_tokens: bool = True,
        split_special_tokens: bool = False,
    ) -> list[int]:
        """How many tokens each text is, then each conversation with its template."""
        request = m.count_request(texts, conversations, model, add_special_tokens, split_special_tokens)
        return m.counts(self._unary(self._stub.CountTokens, request))

    def embed(self, *inputs: Prompt, **options: Unpack[EmbedOptions]) -> Embeddings:
        """The vectors of texts, or of token ids used as they are, at most 2048. Raises InvalidRequest."""
        request = embed_request(inputs, options)
        return embeddings(self._unary(self._stub.Embed, request, _embed_timeout_s(options)))

    def tokenizer(self, model: str = "") -> TokenizerFiles:
        """The files of a model's tokenizer, to tokenize without the server."""
        call = self._stub.GetTokenizer(m.tokenizer_request(model), timeout=UNARY_TIMEOUT_S, metadata=self._metadata)
        try:
            return m.tokenizer_files(list(call))
        except grpc.RpcError as error:
            raise from_rpc_error(error) from None

    def models(self) -> list[ModelCard]:
        """What can be asked for."""
        return m.model_cards(self._unary(self._stub.ListModels, m.list_models_request()))

    def close(self) -> None:
        """End the connection and every stream on it."""
        self._stub.close()
        if not grpc_is_lost():
            self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _unary(self, method: Any, request: Any, timeout_s: float | None = UNARY_TIMEOUT_S) -> Any:
        try:
            return method(request, timeout=timeout_s, metadata=self._metadata)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from None


class AsyncClient:
    """A gateway, for asyncio. Belongs to the loop it was made in; close it, or use it in an `async with` block."""

    def __init__(
        self,
        target: str = DEFAULT_TARGET,
        *,
        api_key: str = "",
        tls: ClientTls | None = None,
        max_attempts: int = DEFAULT_ATTEMPTS,
        plaintext_key: bool = False,
    ) -> None:
        """`api_key`: an API key or a JWT, sent with every call. `tls`: None: without; its files are read here, once.

        `max_attempts`: how often a call that no server has taken is tried, with growing pauses; 1 to 5.
        `plaintext_key`: send the key without TLS to other machines too, as behind a mesh's sidecar. Raises
        FailedPrecondition for TLS files that cannot be used, for a key that would be sent so without this, and where no
        event loop runs.
        """
        self.target = target
        self._metadata = bearer(api_key, target, tls, plaintext_key)
        try:
            self._loop = asyncio.get_running_loop()
        except RuntimeError:
            message = "an AsyncClient belongs to the event loop it is made in, and none runs here"
            raise FailedPrecondition(f"{message}: make it in a coroutine", reason="NO_EVENT_LOOP") from None
        self._channel = aio_channel(target, tls, retry_options(max_attempts))
        self._stub = OpenStub(self._channel, target)

    def generate(self, *prompts: Prompt, **options: Unpack[CallOptions]) -> AsyncStream:
        """As `Client.generate`."""
        sent = m.generate_call(prompts, options)
        call = self._stub.Generate(sent.request, timeout=sent.timeout_s, metadata=self._metadata)
        return AsyncStream(sent, call, self._loop)

    def chat(self, messages: str | Sequence[Message], **options: Unpack[ChatOptions]) -> AsyncStream:
        """As `Client.chat`."""
        sent = m.chat_call(*chat_parts(messages, options))
        call = self._stub.Chat(sent.request, timeout=sent.timeout_s, metadata=self._metadata)
        return AsyncStream(sent, call, self._loop)

    def session(self, *, max_open: int = 1024) -> AsyncSession:
        """As `Client.session`, on this client's connection."""
        method = self._stub.Session
        return AsyncSession(
            lambda: method(metadata=self._metadata),
            self.target,
            max_open,
            partial(told_to_move, self._channel),
        )

    async def tokenize(
        self,
        *texts: str,
        model: str = "",
        add_special_tokens: bool = True,
        return_offsets: bool = False,
        split_special_tokens: bool = False,
    ) -> list[Encoding]:
        """As `Client.tokenize`."""
        request = m.tokenize_request(texts, model, add_special_tokens, return_offsets, split_special_tokens)
        return m.encodings(await self._unary(self._stub.Tokenize, request))

    async def detokenize(
        self,
        *sequences: Sequence[int],
        model: str = "",
        skip_special_tokens: bool = True,
        spaces_between_special_tokens: bool = True,
    ) -> list[str]:
        """As `Client.detokenize`."""
        request = m.detokenize_request(sequences, model, skip_special_tokens, spaces_between_special_tokens)
        return m.detokenized(await self._unary(self._stub.Detokenize, request))

    async def apply_chat_template(
        self,
        messages: str | Sequence[Message],
        *,
        model: str = "",
        tokenize: bool = False,
        split_special_tokens: bool = False,
        tools: Sequence[Tool] = (),
        template_arguments: Mapping[str, Any] | None = None,
        documents: Sequence[Mapping[str, Any]] = (),
        add_generation_prompt: bool | None = None,
        continue_final_message: bool = False,
    ) -> RenderedPrompt:
        """As `Client.apply_chat_template`."""
        conversation = conversation_of(
            messages,
            tools=tools,
            template_arguments=template_arguments,
            documents=documents,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
        )
        request = m.apply_template_request(conversation, model, tokenize, split_special_tokens)
        return m.rendered(await self._unary(self._stub.ApplyChatTemplate, request))

    async def count_tokens(
        self,
        *texts: str,
        conversations: Sequence[Sequence[Message]] = (),
        model: str = "",
        add_special_tokens: bool = True,
        split_special_tokens: bool = False,
    ) -> list[int]:
        """As `Client.count_tokens`."""
        request = m.count_request(texts, conversations, model, add_special_tokens, split_special_tokens)
        return m.counts(await self._unary(self._stub.CountTokens, request))

    async def embed(self, *inputs: Prompt, **options: Unpack[EmbedOptions]) -> Embeddings:
        """As `Client.embed`."""
        request = embed_request(inputs, options)
        return embeddings(await self._unary(self._stub.Embed, request, _embed_timeout_s(options)))

    async def tokenizer(self, model: str = "") -> TokenizerFiles:
        """As `Client.tokenizer`."""
        call = self._stub.GetTokenizer(m.tokenizer_request(model), timeout=UNARY_TIMEOUT_S, metadata=self._metadata)
        try:
            return m.tokenizer_files([response async for response in call])
        except grpc.RpcError as error:
            raise from_rpc_error(error) from None

    async def models(self) -> list[ModelCard]:
        """As `Client.models`."""
        return m.model_cards(await self._unary(self._stub.ListModels, m.list_models_request()))

    async def close(self) -> None:
        """End the connection and every stream on it."""
        self._stub.close()
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.close()

    async def _unary(self, method: Any, request: Any, timeout_s: float | None = UNARY_TIMEOUT_S) -> Any:
        try:
            return await method(request, timeout=timeout_s, metadata=self._metadata)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from None


def _embed_timeout_s(given: EmbedOptions) -> float | None:
    """The transport's own limit: embedding may take as long as the caller waits."""
    timeout_s = given.get("timeout_s")
    return None if timeout_s is None else timeout_s + m.DEADLINE_GRACE_S
