"""TokenizerService: streams of ids, the files, health and load, against a running tier."""

import asyncio
import hashlib
from pathlib import Path
from typing import Any

import grpc

from tests.fakes.live_tokenizer_tier import (
    LiveTokenizerTier,
    TextPeer,
    live_tokenizer_tier,
    refusal,
    text_request,
    with_tier,
)
from tests.fakes.model_tier import fake_model_tier
from tests.fakes.tokenizers_trained import write_folder
from tokenizer_svc.detokenizer import Detokenizer
from tokenwire.errors import InvalidRequest, NotFound
from tokenwire.health import is_serving
from tokenwire.v1 import tokenizer_pb2 as pb


def test_get_tokenizer_gives_the_files(trained_folder: Path) -> None:
    async def call(live: LiveTokenizerTier) -> None:
        first, *pieces = [piece async for piece in live.stub.GetTokenizer(pb.GetTokenizerRequest())]
        assert first.fingerprint.vocabulary == live.tokenizer.fingerprint
        names = [file.name for file in first.files]
        assert names == ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"]
        for index, file in enumerate(first.files):
            content = b"".join(piece.content for piece in pieces if piece.file_index == index)
            assert content == (trained_folder / file.name).read_bytes() and file.size_bytes == len(content)
            assert file.sha256 == hashlib.sha256(content).hexdigest()

    with_tier(trained_folder, call)


def test_a_large_tokenizer_fits_the_limit_that_clients_have(tmp_path: Path) -> None:
    """The channel here takes 4 MiB a message, as every gRPC client does that was not told otherwise."""
    folder = write_folder(tmp_path / "large")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("x" * 9_000_000)

    async def call(live: LiveTokenizerTier) -> None:
        first, *pieces = [piece async for piece in live.stub.GetTokenizer(pb.GetTokenizerRequest())]
        assert first.files[-1].name == "additional_chat_templates/tool_use.jinja"
        assert max(piece.ByteSize() for piece in pieces) < 1.1 * 2**20
        assert sum(len(piece.content) for piece in pieces) == sum(file.size_bytes for file in first.files) > 9_000_000

    with_tier(folder, call)


def test_stream_detokenize_keeps_sequences_apart(trained_folder: Path) -> None:
    async def call(live: LiveTokenizerTier) -> None:
        stream = live.stub.StreamDetokenize()
        texts = {1: "naïve 日本語", 2: "say STOP not this", 3: "unfinished ST"}
        queues = {handle: live.ids(text) for handle, text in texts.items()}
        got = dict.fromkeys(texts, "")
        stopped, ended = {}, set()
        reader = asyncio.ensure_future(read_all(stream, got, stopped, ended))
        for position in range(max(map(len, queues.values()))):
            for handle, ids in queues.items():
                if position < len(ids) and not (handle == 2 and position >= len(live.ids("say STOP"))):
                    end = position == len(ids) - 1
                    await stream.write(
                        pb.StreamDetokenizeRequest(
                            handle=handle, token_ids=[ids[position]], stop_strings=["STOP"], end=end
                        )
                    )
        await stream.done_writing()
        await reader
        assert got == {1: texts[1], 2: "say ", 3: texts[3]}
        assert stopped == {2: "STOP"}
        assert ended == {1, 2, 3}

    async def read_all(stream: Any, got: dict[int, str], stopped: dict[int, str], ended: set[int]) -> None:
        while (answer := await stream.read()) is not grpc.aio.EOF:
            got[answer.handle] += answer.text
            if answer.stop_string:
                stopped[answer.handle] = answer.stop_string
            if answer.end:
                ended.add(answer.handle)

    with_tier(trained_folder, call)


def test_what_was_sent_before_a_stop_string_was_heard_of_is_ignored(trained_folder: Path) -> None:
    async def call(live: LiveTokenizerTier) -> None:
        stream = live.stub.StreamDetokenize()
        ids = live.ids("say STOP and much more")
        for round_end in (False, True):  # once the caller has ended it, the handle may begin anew
            for position, token_id in enumerate(ids):
                end = position == len(ids) - 1
                request = pb.StreamDetokenizeRequest(handle=7, token_ids=[token_id], stop_strings=["STOP"], end=end)
                await stream.write(request)
            if round_end:
                await stream.done_writing()
        answers = []
        while (answer := await stream.read()) is not grpc.aio.EOF:
            answers.append(answer)
        assert "".join(answer.text for answer in answers) == "say say "
        assert [answer.stop_string for answer in answers if answer.end] == ["STOP", "STOP"]

    with_tier(trained_folder, call)


def test_the_end_of_the_callers_side_ends_what_is_open(trained_folder: Path) -> None:
    async def call(live: LiveTokenizerTier) -> None:
        stream = live.stub.StreamDetokenize()
        for handle, text in ((1, "abc ST"), (2, "abc STOP"), (3, "abc ST")):
            request = pb.StreamDetokenizeRequest(handle=handle, token_ids=live.ids(text), stop_strings=["STOP"])
            request.end = handle == 3
            await stream.write(request)
        await stream.done_writing()
        texts, ends = dict.fromkeys((1, 2, 3), ""), list[tuple[int, str]]()
        async for answer in stream:
            texts[answer.handle] += answer.text
            if answer.end:
                ends.append((answer.handle, answer.stop_string))
        assert texts == {1: "abc ST", 2: "abc ", 3: "abc ST"}
        assert sorted(ends) == [(1, ""), (2, "STOP"), (3, "")]

    with_tier(trained_folder, call)


def test_stream_detokenize_refuses_ids_outside_the_vocabulary(trained_folder: Path) -> None:
    async def call(live: LiveTokenizerTier) -> None:
        stream = live.stub.StreamDetokenize()
        await stream.write(pb.StreamDetokenizeRequest(handle=1, token_ids=[10**6]))
        assert isinstance(await refusal(stream.read()), InvalidRequest)

    with_tier(trained_folder, call)


def test_get_tokenizer_of_another_model_is_not_found(trained_folder: Path) -> None:
    async def call(live: LiveTokenizerTier) -> None:
        error = await refusal(live.stub.GetTokenizer(pb.GetTokenizerRequest(model="other")).read())
        assert type(error) is NotFound and "other" in error.message

    with_tier(trained_folder, call)


def test_a_name_that_no_model_has_is_refused_at_once_and_told_by_its_beginning(trained_folder: Path) -> None:
    async def call(live: LiveTokenizerTier) -> None:
        error = await refusal(live.stub.Tokenize(pb.TokenizeRequest(model="m" * 2_000_000, texts=["a"])))
        assert type(error) is InvalidRequest and [each.field for each in error.violations] == ["model"]
        assert len(error.message) < 200
        error = await refusal(live.stub.Tokenize(pb.TokenizeRequest(model="m" * 256, texts=["a"])))
        assert type(error) is NotFound and len(error.message) < 250

    with_tier(trained_folder, call)


def test_a_lost_stream_is_taken_up_where_it_was(trained_folder: Path) -> None:
    async def call(live: LiveTokenizerTier) -> None:
        text = "naïve 日本語 😀 and more, STOP that"
        ids = live.ids(text)
        for options, whole in (({}, text), ({"stop_strings": ["STOP"], "include_stop_string": True}, text[:-5])):
            stream = live.stub.StreamDetokenize()
            request = pb.StreamDetokenizeRequest(handle=1, token_ids=ids, received_chars=7, end=True, **options)
            await stream.write(request)
            answer = await stream.read()
            assert (answer.text, answer.end) == (whole[7:], True)
            request = pb.StreamDetokenizeRequest(handle=2, token_ids=ids[:4], received_tokens=4, **options)
            await stream.write(request)
            await stream.write(pb.StreamDetokenizeRequest(handle=2, token_ids=ids[4:], end=True))
            answer = await stream.read()
            assert Detokenizer(live.tokenizer).push(ids[:4]) + answer.text == whole
            await stream.write(pb.StreamDetokenizeRequest(handle=3, token_ids=ids, received_chars=999, end=True))
            assert "received_chars" in (await refusal(stream.read())).message

    with_tier(trained_folder, call)


def test_health_follows_the_model_tiers_and_models_are_listed(trained_folder: Path) -> None:
    async def main() -> None:
        async with fake_model_tier(max_context_tokens=77) as fake:
            async with live_tokenizer_tier(trained_folder, fake, wait=False, served_name="mine") as live:
                await health(live, True)
                card = (await live.stub.ListModels(pb.ListModelsRequest())).models[0]
                assert (card.name, card.max_context_tokens) == ("mine", 77)
                await fake.kill()
                await health(live, False)
                await fake.start()
                await health(live, True)

    async def health(live: LiveTokenizerTier, expected: bool) -> None:
        async with asyncio.timeout(10):
            while await asyncio.to_thread(is_serving, f"127.0.0.1:{live.port}") is not expected:
                await asyncio.sleep(0.01)

    asyncio.run(main())


def test_the_load_of_the_tier_and_of_those_behind_it_is_told_from_what_is_known(trained_folder: Path) -> None:
    async def main() -> None:
        async with fake_model_tier(hold=True) as first:
            async with live_tokenizer_tier(trained_folder, first) as live:
                peer = await TextPeer.open(live)
                await peer.submit(1, text_request("hello", request_id="r1"))
                await first.request()
                found = await live.stub.GetTierLoad(pb.GetTierLoadRequest())
                (tier,) = found.model_tiers
                assert (found.running, found.held, found.oldest_held_us) == (1, 0, 0)
                assert (tier.target, tier.state, tier.open) == (first.target, "ready", 1) and tier.epoch
                await first.kill()
                async with asyncio.timeout(10):
                    while (await live.stub.GetTierLoad(pb.GetTierLoadRequest())).model_tiers[0].state != "unreachable":
                        await asyncio.sleep(0.01)
                (lost,) = (await live.stub.GetTierLoad(pb.GetTierLoadRequest())).model_tiers
                assert (lost.epoch, lost.HasField("load")) == (0, False)

    asyncio.run(main())
