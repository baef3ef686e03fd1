"""Calls that only tokenize, detokenize or render: TokenizerService's messages in, its messages out.

What is small is done on the event loop. The rest goes piece by piece to a thread of its own, answers included, so that
neither streams nor prompts wait for it. Knows nothing of requests that generate.
"""

from collections.abc import Sequence
from functools import partial

from tokenizer_svc.chat_template import Conversation
from tokenizer_svc.detokenizer import decode
from tokenizer_svc.encoder import INLINE_CHARS, INLINE_CONVERSATION_CHARS, EncodedPrompt
from tokenizer_svc.pieces import in_pieces
from tokenizer_svc.prompt import Truncation
from tokenizer_svc.sessions import fingerprint
from tokenizer_svc.tier import Tier
from tokenizer_svc.tokenizer import Encoding
from tokenizer_svc.wire import conversation_from_wire, truncation_from_wire
from tokenwire.errors import InvalidRequest
from tokenwire.field_names import with_fields_renamed
from tokenwire.token_calls import refuse_counted, refuse_items, refuse_text_size
from tokenwire.v1 import tokenizer_pb2 as pb

INLINE_IDS = 2_000
"""Up to this many token ids and sequences are decoded on the event loop (under 1 ms)."""


async def tokenize(request: pb.TokenizeRequest, tier: Tier) -> pb.TokenizeResponse:
    """Texts to token ids."""
    tier.check_model(request.model)
    _require(request.texts, "texts", "at least one text is needed")
    refuse_items(len(request.texts), "texts")
    texts = _texts(request.texts)
    truncation = truncation_from_wire(request)
    _require(truncation is None or truncation.max_tokens, "truncation.max_tokens", "is needed: 1 or more")
    add_special_tokens = request.add_special_tokens if request.HasField("add_special_tokens") else True
    tokenizer, split = tier.tokenizer, request.split_special_tokens

    def encode(piece: Sequence[str]) -> list[pb.Encoding]:
        encodings = tokenizer.encode_batch(
            piece,
            add_special_tokens=add_special_tokens,
            offsets=request.return_offsets,
            split_special_tokens=split,
        )
        return [_encoding(found, truncation, tokenizer.begin_id) for found in encodings]

    answer = pb.TokenizeResponse(fingerprint=fingerprint(tier))
    answer.encodings.extend(await in_pieces(texts, encode, tier.token_thread, inline_size=_inline_chars(split)))
    return answer


async def detokenize(request: pb.DetokenizeRequest, tier: Tier) -> pb.DetokenizeResponse:
    """Token ids to text."""
    tier.check_model(request.model)
    _require(request.sequences, "sequences", "at least one sequence is needed")
    refuse_items(len(request.sequences), "sequences")
    skip = request.skip_special_tokens if request.HasField("skip_special_tokens") else True
    spaces = spaces_between(request)
    tokenizer, thread = tier.tokenizer, tier.token_thread

    def read() -> list[list[int]]:
        sequences = [list(sequence.ids) for sequence in request.sequences]
        for i, ids in enumerate(sequences):
            tokenizer.check_ids(ids, f"sequences[{i}].ids")
        return sequences

    def decode_all(sequences: Sequence[list[int]]) -> list[str]:
        return [
            decode(tokenizer, ids, skip_special_tokens=skip, spaces_between_special_tokens=spaces) for ids in sequences
        ]

    if len(request.sequences) + sum(len(sequence.ids) for sequence in request.sequences) <= INLINE_IDS:
        return pb.DetokenizeResponse(texts=decode_all(read()))
    return pb.DetokenizeResponse(texts=await in_pieces(await thread.run(read), decode_all, thread, inline_size=0))


async def apply_chat_template(request: pb.ApplyChatTemplateRequest, tier: Tier) -> pb.ApplyChatTemplateResponse:
    """A conversation to the prompt the model was trained on."""
    tier.check_model(request.model)
    conversation = conversation_from_wire(request.conversation)
    if request.tokenize:
        prompt = await _encoded(conversation, request.split_special_tokens, tier)
        text, token_ids = prompt.text, prompt.token_ids
    else:
        text, token_ids = await tier.token_thread.run(partial(tier.encoder.render, conversation)), []
    return pb.ApplyChatTemplateResponse(text=text, token_ids=token_ids, fingerprint=fingerprint(tier))


async def count_tokens(request: pb.CountTokensRequest, tier: Tier) -> pb.CountTokensResponse:
    """How many token ids texts and conversations are."""
    tier.check_model(request.model)
    _require(request.texts or request.conversations, "texts", "at least one text or conversation is needed")
    refuse_counted(len(request.texts), len(request.conversations))
    add_special_tokens = request.add_special_tokens if request.HasField("add_special_tokens") else True
    split, tokenizer = request.split_special_tokens, tier.tokenizer
    texts = _texts(request.texts)
    conversations = [
        conversation_from_wire(conversation, f"conversations[{index}]")
        for index, conversation in enumerate(request.conversations)
    ]

    def count(piece: Sequence[str]) -> list[int]:
        return tokenizer.count_batch(piece, add_special_tokens=add_special_tokens, split_special_tokens=split)

    return pb.CountTokensResponse(
        texts=await in_pieces(texts, count, tier.token_thread, inline_size=_inline_chars(split)),
        conversations=[
            await _num_tokens(each, split, tier, f"conversations[{index}]") for index, each in enumerate(conversations)
        ],
        max_context_tokens=tier.max_context_tokens,
        fingerprint=fingerprint(tier),
    )


def spaces_between(request: pb.DetokenizeRequest | pb.StreamDetokenizeRequest) -> bool:
    """Whether a space is kept between special tokens that follow each other; it is unless the caller says otherwise."""
    return request.spaces_between_special_tokens if request.HasField("spaces_between_special_tokens") else True


async def _num_tokens(conversation: Conversation, split_special_tokens: bool, tier: Tier, name: str) -> int:
    """`name`: of the conversation, in errors."""
    try:
        return len((await _encoded(conversation, split_special_tokens, tier)).token_ids)
    except InvalidRequest as error:
        raise with_fields_renamed(error, lambda field: field.replace("conversation", name, 1)) from None


async def _encoded(conversation: Conversation, split_special_tokens: bool, tier: Tier) -> EncodedPrompt:
    encoder = tier.encoder
    if not split_special_tokens and conversation.num_chars() <= INLINE_CONVERSATION_CHARS:
        return await encoder.encode(conversation)
    work = partial(encoder.encode_here, conversation, split_special_tokens=split_special_tokens)
    return await tier.token_thread.run(work)


def _encoding(found: Encoding, truncation: Truncation | None, begin_id: int | None) -> pb.Encoding:
    kept = range(len(found.token_ids)) if truncation is None else truncation.kept(found.token_ids, begin_id)
    offsets = found.offsets
    return pb.Encoding(
        token_ids=[found.token_ids[i] for i in kept],
        starts=[offsets[i][0] for i in kept] if offsets is not None else [],
        ends=[offsets[i][1] for i in kept] if offsets is not None else [],
        num_truncated=len(found.token_ids) - len(kept),
    )


def _texts(given: Sequence[str]) -> list[str]:
    """The texts of a call, none of them too large."""
    texts = list(given)
    for index, text in enumerate(texts):
        refuse_text_size(text, f"texts[{index}]")
    return texts


def _inline_chars(split_special_tokens: bool) -> int:
    """What may be encoded on the event loop: nothing of which the first takes as long as loading."""
    return 0 if split_special_tokens else INLINE_CHARS


def _require(given: object, field: str, description: str) -> None:
    if not given:
        raise InvalidRequest.of(field, description)
