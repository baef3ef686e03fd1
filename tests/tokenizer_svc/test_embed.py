"""Embed of the tokenizer tier: texts to ids, parts to model tiers, and what becomes of a part whose tier is lost."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.live_tokenizer_tier import LiveTokenizerTier, TextPeer, live_tokenizer_tier
from tests.fakes.model_tier import FakeModelTier, fake_model_tier
from tokenizer_svc.embedding import MAX_PARTS, PART_INPUTS, PART_TOKENS, parts_of
from tokenizer_svc.embedding_inputs import NO_AFFIXES, fitted
from tokenizer_svc.encoder import MAX_BATCH_CHARS
from tokenizer_svc.pieces import pieces
from tokenizer_svc.prompt import Truncation
from tokenizer_svc.router import EmbeddingSubmission
from tokenwire.embedding_wire import capabilities_to_wire, capability_names
from tokenwire.embeddings import MAX_INPUTS, EmbeddingOptions
from tokenwire.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    InvalidRequest,
    NotFound,
    Overloaded,
    TokenwireError,
    Unavailable,
)
from tokenwire.requests import RequestContext
from tokenwire.status import from_rpc_error
from tokenwire.v1 import common_pb2, model_pb2
from tokenwire.v1 import tokenizer_pb2 as pb

SIZE = 4
Call = Callable[[FakeModelTier, LiveTokenizerTier], Awaitable[None]]


def with_tiers(folder: Path, call: Call, settings: dict[str, Any] | None = None, **model: Any) -> None:
    async def main() -> None:
        async with (
            fake_model_tier(**{"embedding_size": SIZE, **model}) as fake,
            live_tokenizer_tier(folder, fake, **(settings or {})) as live,
        ):
            await call(fake, live)
            await live.until_idle()

    asyncio.run(main())


async def refusal(call: Awaitable[Any]) -> TokenwireError:
    with pytest.raises(Exception) as caught:
        await call
    return from_rpc_error(caught.value)  # type: ignore[arg-type]


def numbers(response: pb.EmbedResponse) -> list[tuple[int, int]]:
    """First id and length of each input, as the fake puts them into vectors."""
    return [(int(e.values[0]), int(e.values[1])) for e in response.embeddings]


def test_texts_are_encoded_with_their_special_tokens(trained_folder: Path) -> None:
    async def call(fake: FakeModelTier, live: LiveTokenizerTier) -> None:
        texts = ["hello", "日本語 text", "a" * 500]
        ids = [live.tokenizer.encode(text, add_special_tokens=True).token_ids for text in texts]
        response = await live.stub.Embed(pb.EmbedRequest(texts=texts))
        assert numbers(response) == [(each[0], len(each)) for each in ids]
        assert response.usage.prompt_tokens == sum(map(len, ids))
        (sent,) = fake.embeds
        assert [list(each.ids) for each in sent.inputs] == ids
        assert sent.fingerprint.vocabulary == live.tokenizer.fingerprint
        assert live.metric("embedded_total") == 3
        assert live.metric("embedded_tokens_total") == response.usage.prompt_tokens

    with_tiers(trained_folder, call)


def test_token_ids_and_options_go_down_as_they_are(trained_folder: Path) -> None:
    async def call(fake: FakeModelTier, live: LiveTokenizerTier) -> None:
        options = model_pb2.EmbeddingOptions(pooling=model_pb2.POOLING_CLS, normalize=False, dimensions=3)
        context = common_pb2.RequestContext(request_id="mine", priority=3, tenant="t", timeout_ms=5000)
        request = pb.EmbedRequest(token_ids=[{"ids": [5, 6]}, {"ids": [7]}], options=options, context=context)
        response = await live.stub.Embed(request)
        assert numbers(response) == [(5, 2), (7, 1)] and len(response.embeddings[0].values) == 3
        (sent,) = fake.embeds
        assert sent.options == options
        assert (sent.context.request_id, sent.context.priority, sent.context.tenant) == ("mine", 3, "t")
        assert 0 < sent.context.timeout_ms < 5000

    with_tiers(trained_folder, call)


@pytest.mark.parametrize(
    ("request_", "kind", "said"),
    [
        (pb.EmbedRequest(), InvalidRequest, "texts: 0 inputs"),
        (pb.EmbedRequest(texts=["a", ""]), InvalidRequest, "texts[1]: is empty"),
        (pb.EmbedRequest(token_ids=[{"ids": [1]}, {}]), InvalidRequest, "token_ids[1]: is empty"),
        (pb.EmbedRequest(texts=["a"] * (MAX_INPUTS + 1)), InvalidRequest, "2049 inputs"),
        (pb.EmbedRequest(texts=["a"], token_ids=[{"ids": [1]}]), InvalidRequest, "token_ids: texts are given too"),
        (pb.EmbedRequest(token_ids=[{"ids": [1, 99999]}]), InvalidRequest, "token_ids[0].ids[1]: 99999"),
        (pb.EmbedRequest(token_ids=[{"ids": [1] * 65}]), InvalidRequest, "token_ids[0]: has 65 tokens"),
        (pb.EmbedRequest(texts=["a"], options={"dimensions": 5}), InvalidRequest, "options.dimensions: 5"),
        (pb.EmbedRequest(texts=["a"], options={"pooling": 9}), InvalidRequest, "options.pooling: 9"),
        (pb.EmbedRequest(texts=["a"], truncation={"side": 7}), InvalidRequest, "truncation.side"),
        (pb.EmbedRequest(texts=["a"], model="other"), NotFound, "other"),
    ],
)  # fmt: skip
def test_what_is_refused(trained_folder: Path, request_: Any, kind: type[TokenwireError], said: str) -> None:
    async def call(fake: FakeModelTier, live: LiveTokenizerTier) -> None:
        error = await refusal(live.stub.Embed(request_))
        assert type(error) is kind and said in error.message, error.message
        assert not fake.embeds

    with_tiers(trained_folder, call, max_context_tokens=64)


def test_an_answer_beyond_grpcs_limit_is_refused(trained_folder: Path) -> None:
    async def call(fake: FakeModelTier, live: LiveTokenizerTier) -> None:
        error = await refusal(live.stub.Embed(pb.EmbedRequest(texts=["a"] * 1025)))
        assert isinstance(error, InvalidRequest) and "send at most 1008 inputs" in error.message
        request = pb.EmbedRequest(texts=["a"] * 1025, options={"dimensions": 100})
        assert len((await live.stub.Embed(request)).embeddings) == 1025

    with_tiers(trained_folder, call, embedding_size=1024)


def test_a_model_tier_that_does_not_embed(trained_folder: Path) -> None:
    async def call(fake: FakeModelTier, live: LiveTokenizerTier) -> None:
        error = await refusal(live.stub.Embed(pb.EmbedRequest(texts=["a"])))
        assert isinstance(error, FailedPrecondition) and error.reason == "MODEL_DOES_NOT_EMBED"
        (card,) = (await live.stub.ListModels(pb.ListModelsRequest())).models
        assert list(card.capabilities) == [common_pb2.CAPABILITY_GENERATE] and not card.embedding_size

    with_tiers(trained_folder, call, embedding_size=0)


def test_without_a_model_tier(trained_folder: Path) -> None:
    async def main() -> None:
        async with live_tokenizer_tier(trained_folder, wait=False) as live:
            assert isinstance(await refusal(live.stub.Embed(pb.EmbedRequest(texts=["a"]))), Unavailable)
            await live.until_idle()

    asyncio.run(main())


def test_the_card_tells_what_can_be_asked_for(trained_folder: Path) -> None:
    async def call(fake: FakeModelTier, live: LiveTokenizerTier) -> None:
        (card,) = (await live.stub.ListModels(pb.ListModelsRequest())).models
        assert list(card.capabilities) == [common_pb2.CAPABILITY_GENERATE, common_pb2.CAPABILITY_EMBED]
        assert card.embedding_size == SIZE

    with_tiers(trained_folder, call)


def test_whatever_changes_on_the_card_is_told(trained_folder: Path) -> None:
    async def call(fake: FakeModelTier, live: LiveTokenizerTier) -> None:
        peer = await TextPeer.open(live)
        assert peer.hello.models[0].embedding_size == SIZE
        fake.card.embedding_size, fake.card.max_context_tokens = 2 * SIZE, 99
        await fake.announce_card()
        (card,) = (await peer.read()).models
        assert (card.embedding_size, card.max_context_tokens) == (2 * SIZE, 99)
        assert capability_names(card) == ["generate", "embed"]
        fake.card.capabilities[:] = capabilities_to_wire(generates=True, embeds=False)
        fake.card.embedding_size = 0
        await fake.announce_card()
        (card,) = (await peer.read()).models
        assert capability_names(card) == ["generate"] and not card.embedding_size
        await fake.announce_card()
        fake.card.max_context_tokens = 98
        await fake.announce_card()
        (card,) = (await peer.read()).models
        assert card.max_context_tokens == 98, "what is the same is not told again"

    with_tiers(trained_folder, call)


def test_a_large_call_goes_down_a_few_parts_at_a_time_and_comes_back_in_order(trained_folder: Path) -> None:
    async def call(fake: FakeModelTier, live: LiveTokenizerTier) -> None:
        fake.embeds_go_on.clear()
        inputs = [{"ids": [i % 90]} for i in range(10 * PART_INPUTS + 5)]
        answer = asyncio.ensure_future(live.stub.Embed(pb.EmbedRequest(token_ids=inputs)))
        await fake.until(lambda fake: fake.num_embedding == MAX_PARTS)
        await asyncio.sleep(0.05)
        assert fake.num_embedding == MAX_PARTS and live.server.replicas[0].load >= MAX_PARTS * PART_INPUTS
        fake.embeds_go_on.set()
        assert numbers(await answer) == [(i % 90, 1) for i in range(len(inputs))]
        assert len(fake.embeds) == 11 and len({each.context.request_id for each in fake.embeds}) == 11
        assert live.server.replicas[0].num_open == 0

    with_tiers(trained_folder, call)


def test_a_caller_that_leaves_takes_everything_back(trained_folder: Path) -> None:
    async def call(fake: FakeModelTier, live: LiveTokenizerTier) -> None:
        fake.embeds_go_on.clear()
        answer = live.stub.Embed(pb.EmbedRequest(texts=["a"] * 1000))
        await fake.until(lambda fake: fake.num_embedding == MAX_PARTS)
        answer.cancel()
        await fake.until(lambda fake: fake.num_embedding == 0)
        await live.until_idle()
        assert live.server.replicas[0].num_open == 0 and len(fake.embeds) == MAX_PARTS

    with_tiers(trained_folder, call)


def test_a_part_taken_back_in_the_turn_it_goes_counts_no_more(trained_folder: Path) -> None:
    async def call(fake: FakeModelTier, live: LiveTokenizerTier) -> None:
        (replica,) = live.server.replicas
        submission = EmbeddingSubmission(RequestContext("a"), [[5], [6]], EmbeddingOptions(), "")
        task = replica.embed(submission)
        assert replica.num_open == 2
        task.cancel()
        await asyncio.wait([task])
        assert replica.num_open == 0 and not fake.embeds

    with_tiers(trained_folder, call)


def test_a_call_is_a_trial_as_soon_as_it_goes(trained_folder: Path) -> None:
    async def call(fake: FakeModelTier, live: LiveTokenizerTier) -> None:
        (replica,) = live.server.replicas
        while replica.breaker.admits:
            replica.breaker.on_failure("it said no")
        replica.breaker._next_trial_s = 0.0
        assert replica.breaker.admits
        task = replica.embed(EmbeddingSubmission(RequestContext("a"), [[5]], EmbeddingOptions(), ""))
        assert not replica.breaker.admits, "one request is on trial, others go elsewhere"
        await task
        assert replica.breaker.admits

    with_tiers(trained_folder, call)


def test_a_deadline_ends_a_call_that_hangs(trained_folder: Path) -> None:
    async def call(fake: FakeModelTier, live: LiveTokenizerTier) -> None:
        fake.embeds_go_on.clear()
        request = pb.EmbedRequest(texts=["a"], context={"timeout_ms": 80})
        assert isinstance(await refusal(live.stub.Embed(request)), DeadlineExceeded)
        assert isinstance(await refusal(live.stub.Embed(pb.EmbedRequest(texts=["a"]), timeout=0.1)), DeadlineExceeded)
        await fake.until(lambda fake: fake.num_embedding == 0)

    with_tiers(trained_folder, call)


def test_a_part_goes_on_at_another_model_tier(trained_folder: Path) -> None:
    async def main() -> None:
        async with (
            fake_model_tier(embedding_size=SIZE) as first,
            fake_model_tier(embedding_size=SIZE) as second,
            live_tokenizer_tier(trained_folder, first, second) as live,
        ):
            for fake in (first, second):
                fake.embeds_go_on.clear()
            answer = asyncio.ensure_future(live.stub.Embed(pb.EmbedRequest(token_ids=[{"ids": [3, 4]}])))
            async with asyncio.timeout(5):
                while not first.num_embedding + second.num_embedding:
                    await asyncio.sleep(0.002)
            lost, other = (first, second) if first.num_embedding else (second, first)
            other.embeds_go_on.set()
            await lost.kill()
            assert numbers(await answer) == [(3, 2)]
            assert len(other.embeds) == 1 and live.metric("retries_total") == 1

    asyncio.run(main())


def test_a_model_tier_that_comes_back_gets_the_part_again(trained_folder: Path) -> None:
    async def call(fake: FakeModelTier, live: LiveTokenizerTier) -> None:
        fake.embeds_go_on.clear()
        answer = asyncio.ensure_future(live.stub.Embed(pb.EmbedRequest(token_ids=[{"ids": [3]}])))
        await fake.until(lambda fake: fake.num_embedding == 1)
        await fake.kill()
        fake.embeds_go_on.set()
        await fake.start()
        assert numbers(await answer) == [(3, 1)]

    with_tiers(trained_folder, call)


def test_a_full_queue_is_tried_again_and_other_errors_are_not(trained_folder: Path) -> None:
    refusals: list[TokenwireError] = [Overloaded("full", reason="QUEUE_FULL"), Internal("broken")]

    async def call(fake: FakeModelTier, live: LiveTokenizerTier) -> None:
        fake.on_embed = lambda request: refusals.pop(0) if refusals else None
        error = await refusal(live.stub.Embed(pb.EmbedRequest(texts=["a"])))
        assert isinstance(error, Internal) and error.message == "broken"
        assert len(fake.embeds) == 2 and live.metric("bounced_total") == 1
        assert len((await live.stub.Embed(pb.EmbedRequest(texts=["a"]))).embeddings) == 1

    with_tiers(trained_folder, call)


def test_without_credit_a_part_is_held(trained_folder: Path) -> None:
    credit = common_pb2.AdmissionCredit(requests=0, tokens=0, ttl_ms=60_000)

    async def call(fake: FakeModelTier, live: LiveTokenizerTier) -> None:
        request = pb.EmbedRequest(texts=["a", "b"], context={"timeout_ms": 300})
        answer = asyncio.ensure_future(refusal(live.stub.Embed(request)))
        async with asyncio.timeout(5):
            while live.server.tier.dispatcher.num_held != 2:
                await asyncio.sleep(0.002)
        assert isinstance(await answer, DeadlineExceeded)
        assert not fake.embeds and not live.server.tier.dispatcher.num_held

    with_tiers(trained_folder, call, credit=credit)


def test_a_call_is_refused_whole_where_too_much_runs(trained_folder: Path) -> None:
    async def call(fake: FakeModelTier, live: LiveTokenizerTier) -> None:
        error = await refusal(live.stub.Embed(pb.EmbedRequest(texts=["a"] * 9)))
        assert isinstance(error, Overloaded) and error.reason == "TOO_MANY_REQUESTS"

    with_tiers(trained_folder, call, {"max_requests": 8})


def test_truncation(trained_folder: Path) -> None:
    async def call(fake: FakeModelTier, live: LiveTokenizerTier) -> None:
        ids = list(range(1, 40))
        for fields, kept in (
            ({"truncate": True}, ids[:16]),
            ({"truncation": {"max_tokens": 5}}, ids[:5]),
            ({"truncation": {"side": 1, "max_tokens": 5}}, ids[-5:]),
            ({"truncation": {"side": 2}}, ids[:16]),
        ):
            await live.stub.Embed(pb.EmbedRequest(token_ids=[{"ids": ids}], **fields))
            assert list(fake.embeds[-1].inputs[0].ids) == kept

    with_tiers(trained_folder, call, max_context_tokens=16)


def test_a_cut_leaves_special_tokens_where_they_are() -> None:
    ids, affixes = [101, 1, 2, 3, 4, 5, 102], ([101], [102])
    assert fitted(ids, 7, None, affixes, "x") == ids
    assert fitted(ids, 5, Truncation(True), affixes, "x") == [101, 1, 2, 3, 102]
    assert fitted(ids, 5, Truncation(False), affixes, "x") == [101, 3, 4, 5, 102]
    assert fitted(ids, 0, Truncation(True, 4), affixes, "x") == [101, 1, 2, 102]
    assert fitted(ids, 0, None, NO_AFFIXES, "x") == ids
    with pytest.raises(InvalidRequest, match=r"truncation.max_tokens: 2 leaves nothing"):
        fitted(ids, 7, Truncation(True, 2), affixes, "x")
    with pytest.raises(InvalidRequest, match=r"x: has 7 tokens, the model takes 6"):
        fitted(ids, 6, None, affixes, "x")
    with pytest.raises(InvalidRequest, match=r"x: has no token"):
        fitted([], 6, None, affixes, "x")


def test_parts_and_pieces() -> None:
    inputs = [[1] * length for length in (5, PART_TOKENS, 3, PART_TOKENS + 9, *[1] * (PART_INPUTS + 1))]
    sizes = [[len(each) for each in part] for part in parts_of(inputs)]
    assert sizes == [[5], [PART_TOKENS], [3], [PART_TOKENS + 9], [1] * PART_INPUTS, [1]]
    texts = ["a" * MAX_BATCH_CHARS, "b", "c" * (MAX_BATCH_CHARS - 1), "d"]
    assert [[len(text) for text in piece] for piece in pieces(texts)] == [
        [MAX_BATCH_CHARS], [1, MAX_BATCH_CHARS - 1], [1],
    ]  # fmt: skip
    assert not list(pieces([]))
