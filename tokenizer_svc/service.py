"""TokenizerService: sessions, and the calls that only tokenize, detokenize or render."""

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from pathlib import Path

import grpc

from tokenizer_svc.backends import ModelReplica
from tokenizer_svc.detokenizer import CONTEXT_TOKENS, decode
from tokenizer_svc.embedding import embed
from tokenizer_svc.prompt import Truncation
from tokenizer_svc.sessions import TextSession, fingerprint, model_card
from tokenizer_svc.stream_detokenize import OpenSequences
from tokenizer_svc.tier import RETRY_AFTER_S, Tier
from tokenizer_svc.tokenizer import Encoding
from tokenizer_svc.tokenizer_files import read_tokenizer_files
from tokenizer_svc.tracing import embedding
from tokenizer_svc.wire import conversation_from_wire, embedding_call_from_wire, truncation_from_wire
from tokenwire.embedding_wire import vectors_to_wire
from tokenwire.errors import InvalidRequest, TokenwireError, Unavailable
from tokenwire.requests import GenerationOptions
from tokenwire.sampling import StopParams, refuse
from tokenwire.session_server import run_session
from tokenwire.settings import ServerSettings
from tokenwire.token_calls import refuse_counted, refuse_items
from tokenwire.v1 import tokenizer_pb2 as pb
from tokenwire.v1 import tokenizer_pb2_grpc
from tokenwire.wire import usage_to_wire

INLINE_IDS = 2_000
"""Up to this many token ids and sequences are decoded on the event loop (under 1 ms)."""


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
        self._tier.check_model(request.model)
        _require(request.texts, "texts", "at least one text is needed")
        refuse_items(len(request.texts), "texts")
        truncation = truncation_from_wire(request)
        _require(truncation is None or truncation.max_tokens, "truncation.max_tokens", "is needed: 1 or more")
        add_special_tokens = request.add_special_tokens if request.HasField("add_special_tokens") else True
        texts, tokenizer, meaning = list(request.texts), self._tier.tokenizer, fingerprint(self._tier)

        def encode() -> pb.TokenizeResponse:
            encodings = tokenizer.encode_batch(
                texts,
                add_special_tokens=add_special_tokens,
                offsets=request.return_offsets,
                split_special_tokens=request.split_special_tokens,
            )
            answer = pb.TokenizeResponse(fingerprint=meaning)
            answer.encodings.extend(_encoding(found, truncation, tokenizer.begin_id) for found in encodings)
            return answer

        return await self._tier.encoder.call(encode)

    async def Detokenize(
        self, request: pb.DetokenizeRequest, context: grpc.aio.ServicerContext
    ) -> pb.DetokenizeResponse:
        """Token ids to text."""
        self._tier.check_model(request.model)
        _require(request.sequences, "sequences", "at least one sequence is needed")
        refuse_items(len(request.sequences), "sequences")
        skip = request.skip_special_tokens if request.HasField("skip_special_tokens") else True
        spaces = _spaces_between(request)
        tokenizer = self._tier.tokenizer

        def decode_all() -> pb.DetokenizeResponse:
            sequences = [list(sequence.ids) for sequence in request.sequences]
            for i, ids in enumerate(sequences):
                tokenizer.check_ids(ids, f"sequences[{i}].ids")
            return pb.DetokenizeResponse(
                texts=[
                    decode(tokenizer, ids, skip_special_tokens=skip, spaces_between_special_tokens=spaces)
                    for ids in sequences
                ]
            )

        short = len(request.sequences) + sum(len(sequence.ids) for sequence in request.sequences) <= INLINE_IDS
        return decode_all() if short else await self._tier.encoder.call(decode_all)

    async def StreamDetokenize(
        self, requests: AsyncIterator[pb.StreamDetokenizeRequest], context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.StreamDetokenizeResponse]:
        """Token ids to text as they come. A handle that its caller has ended may begin anew."""
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
            text, stop_string, ended = push() if short else await self._tier.encoder.call(push)
            if text or ended:
                yield pb.StreamDetokenizeResponse(
                    handle=request.handle, text=text, stop_string=stop_string or "", end=ended
                )

    def _begin(self, sequences: OpenSequences, request: pb.StreamDetokenizeRequest) -> None:
        """The first message of a sequence."""
        self._tier.check_model(request.model)
        self._tier.tokenizer.check_ids(request.prompt_token_ids, "prompt_token_ids")
        options = GenerationOptions(
            stop=StopParams(min_tokens=request.min_tokens),
            stop_strings=tuple(request.stop_strings),
            include_stop_string=request.include_stop_string,
            skip_special_tokens=request.skip_special_tokens if request.HasField("skip_special_tokens") else True,
            spaces_between_special_tokens=_spaces_between(request),
        )
        refuse(options.violations("request"))
        sequences.begin(
            request.handle,
            options,
            prompt_ids=request.prompt_token_ids[-CONTEXT_TOKENS:],
            received_tokens=request.received_tokens,
            received_chars=request.received_chars,
        )

    async def ApplyChatTemplate(
        self, request: pb.ApplyChatTemplateRequest, context: grpc.aio.ServicerContext
    ) -> pb.ApplyChatTemplateResponse:
        """A conversation to the prompt the model was trained on."""
        self._tier.check_model(request.model)
        conversation = conversation_from_wire(request.conversation)
        if request.tokenize:
            prompt = await self._tier.encoder.encode(conversation, split_special_tokens=request.split_special_tokens)
            text, token_ids = prompt.text, prompt.token_ids
        else:
            text, token_ids = await self._tier.encoder.call(lambda: self._tier.encoder.render(conversation)), []
        return pb.ApplyChatTemplateResponse(text=text, token_ids=token_ids, fingerprint=fingerprint(self._tier))

    async def CountTokens(
        self, request: pb.CountTokensRequest, context: grpc.aio.ServicerContext
    ) -> pb.CountTokensResponse:
        """How many token ids texts and conversations are."""
        self._tier.check_model(request.model)
        _require(request.texts or request.conversations, "texts", "at least one text or conversation is needed")
        refuse_counted(len(request.texts), len(request.conversations))
        add_special_tokens = request.add_special_tokens if request.HasField("add_special_tokens") else True
        split, tokenizer, encoder = request.split_special_tokens, self._tier.tokenizer, self._tier.encoder
        texts = list(request.texts)

        def count() -> list[int]:
            found = tokenizer.encode_batch(texts, add_special_tokens=add_special_tokens, split_special_tokens=split)
            return [len(encoding.token_ids) for encoding in found]

        conversations = []
        for index, message in enumerate(request.conversations):
            conversation = conversation_from_wire(message, f"conversations[{index}]")
            prompt = await encoder.encode(conversation, split_special_tokens=split)
            conversations.append(len(prompt.token_ids))
        return pb.CountTokensResponse(
            texts=await encoder.call(count) if texts else [],
            conversations=conversations,
            max_context_tokens=self._tier.max_context_tokens,
            fingerprint=fingerprint(self._tier),
        )

    async def GetTokenizer(
        self, request: pb.GetTokenizerRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.GetTokenizerResponse]:
        """The tokenizer's files, piece by piece."""
        self._tier.check_model(request.model)
        files = await self._tier.encoder.call(lambda: read_tokenizer_files(self._folder))
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


def _encoding(found: Encoding, truncation: Truncation | None, begin_id: int | None) -> pb.Encoding:
    kept = range(len(found.token_ids)) if truncation is None else truncation.kept(found.token_ids, begin_id)
    offsets = found.offsets
    return pb.Encoding(
        token_ids=[found.token_ids[i] for i in kept],
        starts=[offsets[i][0] for i in kept] if offsets is not None else [],
        ends=[offsets[i][1] for i in kept] if offsets is not None else [],
        num_truncated=len(found.token_ids) - len(kept),
    )


def _spaces_between(request: pb.DetokenizeRequest | pb.StreamDetokenizeRequest) -> bool:
    return request.spaces_between_special_tokens if request.HasField("spaces_between_special_tokens") else True


def _require(given: object, field: str, description: str) -> None:
    if not given:
        raise InvalidRequest.of(field, description)
