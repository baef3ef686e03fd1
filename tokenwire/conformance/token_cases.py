"""What the contract says of texts and token ids."""

import hashlib
from collections.abc import AsyncIterator, Awaitable
from typing import Any

from tokenwire.conformance.results import Cases, CaseSkipped, expect
from tokenwire.conformance.target import Target, expect_error, unimplemented_skips
from tokenwire.v1 import common_pb2 as pb
from tokenwire.v1 import model_pb2, tokenizer_pb2

cases: Cases[Target] = Cases()
TEXT = "Hello world, this is a test."


async def ids_of(target: Target, text: str) -> list[int]:
    """A text's token ids, without special tokens."""
    request = tokenizer_pb2.TokenizeRequest(model=target.card.name, texts=[text], add_special_tokens=False)
    response = await target.stub.Tokenize(request, metadata=target.metadata)
    return list(response.encodings[0].token_ids)


async def text_of(target: Target, ids: list[int]) -> str:
    """Their text."""
    request = tokenizer_pb2.DetokenizeRequest(model=target.card.name, sequences=[pb.TokenIds(ids=ids)])
    response = await target.stub.Detokenize(request, metadata=target.metadata)
    return str(response.texts[0])


@cases.case("tokens.round-trip", "Detokenize gives the text that Tokenize was given.")
async def round_trip(target: Target) -> None:
    """Plain ASCII, which every vocabulary can write."""
    ids = await ids_of(target, TEXT)
    expect(bool(ids) and max(ids) < target.card.vocab_size, f"ids are {ids}")
    found = await text_of(target, ids)
    expect(found == TEXT, f"{TEXT!r} came back as {found!r}")


@cases.case("tokens.count", "CountTokens counts what Tokenize sends.")
async def count(target: Target) -> None:
    """With and without special tokens."""
    for special in (True, False):
        tokenize = tokenizer_pb2.TokenizeRequest(model=target.card.name, texts=[TEXT], add_special_tokens=special)
        encoded = await target.stub.Tokenize(tokenize, metadata=target.metadata)
        request = tokenizer_pb2.CountTokensRequest(model=target.card.name, texts=[TEXT], add_special_tokens=special)
        counted = await target.stub.CountTokens(request, metadata=target.metadata)
        number = len(encoded.encodings[0].token_ids)
        expect(list(counted.texts) == [number], f"CountTokens says {list(counted.texts)}, Tokenize sent {number}")


@cases.case("tokens.fingerprint", "Tokenize's fingerprint is that of the model's card.")
async def fingerprint(target: Target) -> None:
    """Of the vocabulary."""
    request = tokenizer_pb2.TokenizeRequest(model=target.card.name, texts=[TEXT])
    response = await target.stub.Tokenize(request, metadata=target.metadata)
    found, listed = response.fingerprint.vocabulary, target.card.fingerprint.vocabulary
    expect(found == listed, f"Tokenize says {found!r}, ListModels {listed!r}")


@cases.case("tokens.stream-detokenize", "StreamDetokenize gives, in pieces, the text that Detokenize gives at once.")
async def stream_detokenize(target: Target) -> None:
    """One id at a time."""
    ids = await ids_of(target, TEXT)

    async def requests() -> AsyncIterator[tokenizer_pb2.StreamDetokenizeRequest]:
        for token in ids:
            yield tokenizer_pb2.StreamDetokenizeRequest(model=target.card.name, handle=1, token_ids=[token])
        yield tokenizer_pb2.StreamDetokenizeRequest(handle=1, end=True)

    text, ended = "", False
    async for response in target.stub.StreamDetokenize(requests(), metadata=target.metadata):
        expect(not ended, "something came after the end")
        text, ended = text + response.text, response.end
    expect(ended, "the stream ended without `end`")
    expect(text == await text_of(target, ids), f"the pieces make {text!r}")


@cases.case("tokens.files", "GetTokenizer sends the files it names, of the sizes and hashes it names.")
async def files(target: Target) -> None:
    """Byte for byte."""
    named: list[Any] = []
    contents: dict[int, bytes] = {}
    request = tokenizer_pb2.GetTokenizerRequest(model=target.card.name)
    async for response in target.stub.GetTokenizer(request, metadata=target.metadata):
        if not named:
            named = list(response.files)
        else:
            contents[response.file_index] = contents.get(response.file_index, b"") + response.content
    expect(bool(named), "no file is named")
    for index, file in enumerate(named):
        content = contents.get(index, b"")
        expect(len(content) == file.size_bytes, f"{file.name}: {len(content)} bytes came, {file.size_bytes} were named")
        expect(hashlib.sha256(content).hexdigest() == file.sha256, f"{file.name}: its hash is another")


@cases.case("tokens.chat-template", "ApplyChatTemplate's text, tokenized as it is, is its token ids.", optional=True)
async def chat_template(target: Target) -> None:
    """One message."""
    request = tokenizer_pb2.ApplyChatTemplateRequest(model=target.card.name, tokenize=True)
    request.conversation.messages.add(role="user", content=TEXT)

    async def ask() -> Any:
        call: Awaitable[Any] = target.stub.ApplyChatTemplate(request, metadata=target.metadata)
        return await call

    response = await unimplemented_skips(ask, "ApplyChatTemplate")
    expect(TEXT in response.text, f"the message is not in the prompt: {response.text!r}")
    ids = await ids_of(target, response.text)
    expect(ids == list(response.token_ids), f"the text's ids are {ids}, sent were {list(response.token_ids)}")


@cases.case("tokens.no-such-id", "Detokenize of an id outside the vocabulary is INVALID_ARGUMENT.")
async def no_such_id(target: Target) -> None:
    """The largest there could be."""
    expect_error(await target.refusal(text_of(target, [2**32 - 1])), "INVALID_ARGUMENT")


@cases.case("tokens.embed", "Embed gives one vector per input, of the size that the model's card says.", optional=True)
async def embed(target: Target) -> None:
    """Where the model embeds."""
    if pb.CAPABILITY_EMBED not in target.card.capabilities:
        raise CaseSkipped("the model does not embed")
    request = tokenizer_pb2.EmbedRequest(model=target.card.name, texts=[TEXT, "Another one."])
    request.options.pooling = model_pb2.POOLING_MEAN

    async def ask() -> Any:
        call: Awaitable[Any] = target.stub.Embed(request, metadata=target.metadata)
        return await call

    response = await unimplemented_skips(ask, "Embed")
    sizes = [len(embedding.values) for embedding in response.embeddings]
    expect(sizes == [target.card.embedding_size] * 2, f"the vectors have {sizes} values")
