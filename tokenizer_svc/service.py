"""TokenizerService: sessions, and the calls that only tokenize, detokenize or render."""

from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import grpc

from tokenizer_svc.sessions import TextSession, fingerprint, model_card
from tokenizer_svc.stream_detokenize import OpenSequences
from tokenizer_svc.tier import Tier
from tokenizer_svc.tokenizer import TOKENIZER_FILES, Encoding
from tokenizer_svc.wire import conversation_from_wire
from tokenwire.errors import FieldViolation, InvalidRequest, Unsupported
from tokenwire.requests import GenerationOptions
from tokenwire.sampling import refuse
from tokenwire.session_server import run_session
from tokenwire.v1 import tokenizer_pb2 as pb
from tokenwire.v1 import tokenizer_pb2_grpc

INLINE_IDS = 2_000
"""Up to this many token ids are decoded on the event loop (under 1 ms)."""


class TokenizerServicer(tokenizer_pb2_grpc.TokenizerServiceServicer):
    """Answers TokenizerService."""

    def __init__(self, tier: Tier, folder: Path) -> None:
        self._tier = tier
        self._folder = folder
        self._sessions: set[TextSession] = set()

    async def Session(self, frames: AsyncIterator[pb.SessionRequest], context: grpc.aio.ServicerContext) -> None:
        """Many text requests on one stream."""
        session = TextSession(self._tier, self._sessions.discard)
        self._sessions.add(session)
        await run_session(frames, context, session)

    def drain_sessions(self, grace_s: float) -> None:
        """Ask every peer to put new Submits on another stream."""
        for session in self._sessions:
            session.drain("the tokenizer tier stops", grace_s)

    async def Tokenize(self, request: pb.TokenizeRequest, context: grpc.aio.ServicerContext) -> pb.TokenizeResponse:
        """Texts to token ids."""
        self._tier.check_model(request.model)
        _require(request.texts, "texts", "at least one text is needed")
        add_special_tokens = request.add_special_tokens if request.HasField("add_special_tokens") else True
        texts, tokenizer = list(request.texts), self._tier.tokenizer

        def encode() -> list[Encoding]:
            return tokenizer.encode_batch(texts, add_special_tokens=add_special_tokens, offsets=request.return_offsets)

        encodings = await self._tier.encoder.call(encode)
        return pb.TokenizeResponse(
            encodings=[
                pb.Encoding(
                    token_ids=found.token_ids,
                    starts=[start for start, _ in found.offsets or ()],
                    ends=[end for _, end in found.offsets or ()],
                )
                for found in encodings
            ],
            fingerprint=fingerprint(self._tier),
        )

    async def Detokenize(
        self, request: pb.DetokenizeRequest, context: grpc.aio.ServicerContext
    ) -> pb.DetokenizeResponse:
        """Token ids to text."""
        self._tier.check_model(request.model)
        _require(request.sequences, "sequences", "at least one sequence is needed")
        skip = request.skip_special_tokens if request.HasField("skip_special_tokens") else True
        sequences, tokenizer = [list(sequence.ids) for sequence in request.sequences], self._tier.tokenizer

        def decode() -> list[str]:
            for i, ids in enumerate(sequences):
                tokenizer.check_ids(ids, f"sequences[{i}].ids")
            return [tokenizer.decode(ids, skip_special_tokens=skip) for ids in sequences]

        short = sum(map(len, sequences)) <= INLINE_IDS
        return pb.DetokenizeResponse(texts=decode() if short else await self._tier.encoder.call(decode))

    async def StreamDetokenize(
        self, requests: AsyncIterator[pb.StreamDetokenizeRequest], context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.StreamDetokenizeResponse]:
        """Token ids to text as they come. A handle that has ended may begin anew."""
        sequences = OpenSequences(self._tier.tokenizer)
        async for request in requests:
            if sequences.is_new(request.handle):
                self._tier.check_model(request.model)
                stop_strings = tuple(request.stop_strings)
                refuse(GenerationOptions(stop_strings=stop_strings).violations("request"))
                skip = request.skip_special_tokens if request.HasField("skip_special_tokens") else True
                sequences.begin(request.handle, stop_strings, skip_special_tokens=skip)
            self._tier.tokenizer.check_ids(request.token_ids, "token_ids")
            text, stop_string, ended = sequences.push(request.handle, request.token_ids, end=request.end)
            if text or ended:
                yield pb.StreamDetokenizeResponse(
                    handle=request.handle, text=text, stop_string=stop_string or "", end=ended
                )

    async def ApplyChatTemplate(
        self, request: pb.ApplyChatTemplateRequest, context: grpc.aio.ServicerContext
    ) -> pb.ApplyChatTemplateResponse:
        """A conversation to the prompt the model was trained on."""
        self._tier.check_model(request.model)
        conversation = conversation_from_wire(request.conversation)
        if request.tokenize:
            prompt = await self._tier.encoder.encode(conversation)
            text, token_ids = prompt.text, prompt.token_ids
        else:
            text, token_ids = await self._tier.encoder.call(lambda: self._tier.encoder.render(conversation)), []
        return pb.ApplyChatTemplateResponse(text=text, token_ids=token_ids, fingerprint=fingerprint(self._tier))

    async def GetTokenizer(
        self, request: pb.GetTokenizerRequest, context: grpc.aio.ServicerContext
    ) -> pb.GetTokenizerResponse:
        """The tokenizer's files."""
        self._tier.check_model(request.model)

        def read() -> list[pb.TokenizerFile]:
            paths = [self._folder / name for name in TOKENIZER_FILES]
            return [pb.TokenizerFile(name=path.name, content=path.read_bytes()) for path in paths if path.is_file()]

        files = await self._tier.encoder.call(read)
        return pb.GetTokenizerResponse(files=files, fingerprint=fingerprint(self._tier))

    async def Embed(self, request: pb.EmbedRequest, context: grpc.aio.ServicerContext) -> pb.EmbedResponse:
        """Refused: not built."""
        raise Unsupported("Embed is not built in this release")

    async def ListModels(
        self, request: pb.ListModelsRequest, context: grpc.aio.ServicerContext
    ) -> pb.ListModelsResponse:
        """What can be asked for."""
        return pb.ListModelsResponse(models=[model_card(self._tier)])


def _require(values: Sequence[object], field: str, description: str) -> None:
    if not values:
        raise InvalidRequest(f"{field}: {description}", violations=[FieldViolation(field, description)])
