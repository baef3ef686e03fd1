"""TokenizerService on the wire: sessions, streams of ids, and each other call handed to its module."""

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import grpc

from tokenizer_svc.backends import ModelReplica
from tokenizer_svc.detokenizer import CONTEXT_TOKENS
from tokenizer_svc.embedding import embed
from tokenizer_svc.sessions import TextSession, fingerprint, model_card
from tokenizer_svc.stream_detokenize import OpenSequences
from tokenizer_svc.tier import RETRY_AFTER_S, Tier
from tokenizer_svc.token_api import INLINE_IDS, apply_chat_template, count_tokens, detokenize, spaces_between, tokenize
from tokenizer_svc.tokenizer_files import read_tokenizer_files
from tokenizer_svc.tracing import embedding
from tokenizer_svc.wire import embedding_call_from_wire
from tokenwire.embedding_wire import vectors_to_wire
from tokenwire.errors import TokenwireError, Unavailable
from tokenwire.requests import GenerationOptions
from tokenwire.sampling import StopParams, refuse
from tokenwire.session_server import run_session
from tokenwire.settings import ServerSettings
from tokenwire.v1 import tokenizer_pb2 as pb
from tokenwire.v1 import tokenizer_pb2_grpc
from tokenwire.wire import usage_to_wire


class TokenizerServicer(tokenizer_pb2_grpc.TokenizerServiceServicer):
    """Answers TokenizerService."""

    def __init__(
        self, tier: Tier, folder: Path, settings: ServerSettings, replicas: Callable[[], Sequence[ModelReplica]]
    ) -> None:
        """`replicas`: the model tiers there are now, those that run out too."""
        self._tier = tier
        self._replicas = replicas
        self._settings = settings
        self._folder = folder
        self._sessions: set[TextSession] = set()
        self._draining = False

    async def Session(self, frames: AsyncIterator[pb.SessionRequest], context: grpc.aio.ServicerContext) -> None:
        """Many text requests on one stream."""
        if self._draining:
            raise Unavailable("the tokenizer tier is shutting down", reason="DRAINING", retry_after_s=RETRY_AFTER_S)
        session = TextSession(self._tier, self._sessions.discard)
        self._sessions.add(session)
        await run_session(
            frames,
            context,
            session,
            max_age_s=self._settings.max_connection_age_s,
            age_grace_s=self._settings.max_connection_age_grace_s,
        )

    def drain_sessions(self, grace_s: float) -> None:
        """Ask every peer to put new Submits on another stream, which is not taken here any more."""
        self._draining = True
        for session in self._sessions:
            session.drain("the tokenizer tier stops", grace_s)

    def announce_card(self) -> None:
        """What the model's card says has changed: every peer hears of it."""
        for session in self._sessions:
            session.announce_card()

    async def Tokenize(self, request: pb.TokenizeRequest, context: grpc.aio.ServicerContext) -> pb.TokenizeResponse:
        """Texts to token ids."""
        return await tokenize(request, self._tier)

    async def Detokenize(
        self, request: pb.DetokenizeRequest, context: grpc.aio.ServicerContext
    ) -> pb.DetokenizeResponse:
        """Token ids to text."""
        return await detokenize(request, self._tier)

    async def ApplyChatTemplate(
        self, request: pb.ApplyChatTemplateRequest, context: grpc.aio.ServicerContext
    ) -> pb.ApplyChatTemplateResponse:
        """A conversation to the prompt the model was trained on."""
        return await apply_chat_template(request, self._tier)

    async def CountTokens(
        self, request: pb.CountTokensRequest, context: grpc.aio.ServicerContext
    ) -> pb.CountTokensResponse:
        """How many token ids texts and conversations are."""
        return await count_tokens(request, self._tier)

    async def StreamDetokenize(
        self, requests: AsyncIterator[pb.StreamDetokenizeRequest], context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.StreamDetokenizeResponse]:
        """Token ids to text as they come. A handle that its caller has ended may begin anew.

        Whoever ends its side of the stream ends what is open.
        """
        sequences = OpenSequences(self._tier.tokenizer)
        async for request in requests:
            if sequences.is_over(request.handle, end=request.end):
                continue

            def push(request: pb.StreamDetokenizeRequest = request) -> tuple[str, str | None, bool]:
                if sequences.is_new(request.handle):
                    self._begin(sequences, request)
                self._tier.tokenizer.check_ids(request.token_ids, "token_ids")
                return sequences.push(request.handle, request.token_ids, end=request.end)

            short = len(request.token_ids) + len(request.prompt_token_ids) <= INLINE_IDS
            text, stop_string, ended = push() if short else await self._tier.token_thread.run(push)
            if text or ended:
                yield _more_text(request.handle, text, stop_string, ended)
        for handle in sequences.handles:
            yield _more_text(handle, *sequences.push(handle, (), end=True))

    def _begin(self, sequences: OpenSequences, request: pb.StreamDetokenizeRequest) -> None:
        """The first message of a sequence."""
        self._tier.check_model(request.model)
        self._tier.tokenizer.check_ids(request.prompt_token_ids, "prompt_token_ids")
        options = GenerationOptions(
            stop=StopParams(min_tokens=request.min_tokens),
            stop_strings=tuple(request.stop_strings),
            include_stop_string=request.include_stop_string,
            skip_special_tokens=request.skip_special_tokens if request.HasField("skip_special_tokens") else True,
            spaces_between_special_tokens=spaces_between(request),
        )
        refuse(options.violations("request"))
        sequences.begin(
            request.handle,
            options,
            prompt_ids=request.prompt_token_ids[-CONTEXT_TOKENS:],
            received_tokens=request.received_tokens,
            received_chars=request.received_chars,
        )

    async def GetTokenizer(
        self, request: pb.GetTokenizerRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.GetTokenizerResponse]:
        """The tokenizer's files, piece by piece."""
        self._tier.check_model(request.model)
        files = await self._tier.token_thread.run(partial(read_tokenizer_files, self._folder))
        yield pb.GetTokenizerResponse(
            files=[pb.TokenizerFile(name=f.name, size_bytes=len(f.content), sha256=f.sha256) for f in files],
            fingerprint=fingerprint(self._tier),
        )
        for index, file in enumerate(files):
            for piece in file.pieces():
                yield pb.GetTokenizerResponse(file_index=index, content=piece)

    async def Embed(self, request: pb.EmbedRequest, context: grpc.aio.ServicerContext) -> pb.EmbedResponse:
        """Vectors of texts or token ids. A caller that leaves takes what is not computed yet back."""
        call = embedding_call_from_wire(request, context.time_remaining())
        try:
            with embedding(self._tier.tracer, call.context, len(call.inputs)) as traced:
                vectors, usage = await embed(replace(call, context=traced), self._tier)
        except TokenwireError as error:
            self._tier.metrics.errors.labels(error.reason).inc()
            raise
        return pb.EmbedResponse(embeddings=vectors_to_wire(vectors), usage=usage_to_wire(usage))

    async def ListModels(
        self, request: pb.ListModelsRequest, context: grpc.aio.ServicerContext
    ) -> pb.ListModelsResponse:
        """What can be asked for."""
        return pb.ListModelsResponse(models=[model_card(self._tier)])

    async def GetTierLoad(
        self, request: pb.GetTierLoadRequest, context: grpc.aio.ServicerContext
    ) -> pb.GetTierLoadResponse:
        """How busy it is here and below, from what is known already."""
        dispatcher = self._tier.dispatcher
        return pb.GetTierLoadResponse(
            running=self._tier.running,
            held=dispatcher.num_held,
            oldest_held_us=round(dispatcher.oldest_held_s * 1e6),
            model_tiers=[
                pb.ModelTierLoad(
                    target=each.target,
                    state=each.state,
                    epoch=each.epoch,
                    load=each.said if each.epoch else None,
                    open=each.num_open,
                    credit=each.credit_requests,
                )
                for each in self._replicas()
            ],
        )


def _more_text(handle: int, text: str, stop_string: str | None, ended: bool) -> pb.StreamDetokenizeResponse:
    return pb.StreamDetokenizeResponse(handle=handle, text=text, stop_string=stop_string or "", end=ended)
