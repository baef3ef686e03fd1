import asyncio
import hashlib
import json
import threading
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.fakes.live_tokenizer_tier import LiveTokenizerTier, TextPeer, live_tokenizer_tier, text_request
from tests.fakes.model_tier import fake_model_tier
from tests.fakes.tokenizers_trained import write_folder
from tokenizer_svc import token_api
from tokenizer_svc.detokenizer import Detokenizer
from tokenwire import token_calls
from tokenwire.errors import FailedPrecondition, InvalidRequest, NotFound, TokenwireError
from tokenwire.health import is_serving
from tokenwire.status import from_rpc_error
from tokenwire.v1 import tokenizer_pb2 as pb

Call = Callable[[LiveTokenizerTier], Awaitable[Any]]


def with_tier(folder: Path, call: Call) -> None:
    """Run against the tier alone; no model tier is needed."""

    async def main() -> None:
        async with live_tokenizer_tier(folder, wait=False) as live:
            await call(live)

    asyncio.run(main())


async def refusal(awaitable: Awaitable[Any]) -> TokenwireError:
    with pytest.raises(grpc.RpcError) as caught:
        await awaitable
    return from_rpc_error(caught.value)


def test_tokenize_and_detokenize_are_inverse(trained_folder: Path) -> None:
    texts = ["The capital of France", "", "naïve 日本語 😀", "long " * 2000]

    async def call(live: LiveTokenizerTier) -> None:
        answer = await live.stub.Tokenize(pb.TokenizeRequest(texts=texts))
        assert [list(e.token_ids) for e in answer.encodings] == [live.ids(text) for text in texts]
        assert not answer.encodings[0].starts
        assert answer.fingerprint.vocabulary == live.tokenizer.fingerprint
        sequences = [{"ids": e.token_ids} for e in answer.encodings]
        back = await live.stub.Detokenize(pb.DetokenizeRequest(model=trained_folder.name, sequences=sequences))
        assert list(back.texts) == texts

    with_tier(trained_folder, call)


def test_offsets_are_in_characters(trained_folder: Path) -> None:
    async def call(live: LiveTokenizerTier) -> None:
        text = "naïve café is"
        answer = await live.stub.Tokenize(pb.TokenizeRequest(texts=[text], return_offsets=True))
        found = answer.encodings[0]
        assert len(found.starts) == len(found.ends) == len(found.token_ids)
        assert text[found.starts[-1] : found.ends[-1]].strip() == "is"

    with_tier(trained_folder, call)


def test_special_tokens_are_skipped_unless_asked_for(trained_folder: Path) -> None:
    async def call(live: LiveTokenizerTier) -> None:
        ids = live.tokenizer.encode("<s>hello</s>", add_special_tokens=False).token_ids
        for skip, expected in ((None, "hello"), (True, "hello"), (False, "<s>hello</s>")):
            request = pb.DetokenizeRequest(sequences=[{"ids": ids}], skip_special_tokens=skip)
            assert list((await live.stub.Detokenize(request)).texts) == [expected]

    with_tier(trained_folder, call)


def test_apply_chat_template(trained_folder: Path) -> None:
    async def call(live: LiveTokenizerTier) -> None:
        conversation = pb.Conversation(messages=[{"role": "user", "content": "Hi"}])
        expected = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
        answer = await live.stub.ApplyChatTemplate(pb.ApplyChatTemplateRequest(conversation=conversation))
        assert (answer.text, list(answer.token_ids)) == (expected, [])
        request = pb.ApplyChatTemplateRequest(conversation=conversation, tokenize=True)
        answer = await live.stub.ApplyChatTemplate(request)
        assert (answer.text, list(answer.token_ids)) == (expected, live.ids(expected))
        assert answer.fingerprint.chat_template.startswith("sha256:")

    with_tier(trained_folder, call)


def test_a_model_without_a_template_says_what_to_do(tmp_path: Path) -> None:
    async def call(live: LiveTokenizerTier) -> None:
        conversation = pb.Conversation(messages=[{"role": "user", "content": "Hi"}])
        for tokenize in (False, True):
            request = pb.ApplyChatTemplateRequest(conversation=conversation, tokenize=tokenize)
            error = await refusal(live.stub.ApplyChatTemplate(request))
            assert isinstance(error, FailedPrecondition) and "chat_template.jinja" in error.message

    with_tier(write_folder(tmp_path / "bare", chat_template=None), call)


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


def test_tokens_are_counted_as_they_are_encoded(trained_folder: Path) -> None:
    async def call(live: LiveTokenizerTier) -> None:
        texts = ["The capital of France", "", "<s>"]
        conversation = pb.Conversation(messages=[{"role": "user", "content": "Hi<s>"}])
        answer = await live.stub.CountTokens(pb.CountTokensRequest(texts=texts, conversations=[conversation] * 2))
        rendered = "<|im_start|>user\nHi<s><|im_end|>\n<|im_start|>assistant\n"
        assert list(answer.texts) == [len(live.ids(text)) for text in texts]
        assert list(answer.conversations) == [len(live.ids(rendered))] * 2
        assert answer.max_context_tokens == 0, "no model tier has said how much"
        request = pb.CountTokensRequest(texts=texts, conversations=[conversation], split_special_tokens=True)
        split = await live.stub.CountTokens(request)
        assert split.texts[2] > answer.texts[2] and split.conversations[0] > answer.conversations[0]
        assert split.texts[0] == answer.texts[0]

    with_tier(trained_folder, call)


def test_special_tokens_in_texts_are_special_unless_they_are_split(trained_folder: Path) -> None:
    async def call(live: LiveTokenizerTier) -> None:
        special = live.tokenizer.backend.token_to_id("<|im_end|>")
        for split in (False, True):
            request = pb.TokenizeRequest(texts=["a<|im_end|>"], split_special_tokens=split)
            (found,) = (await live.stub.Tokenize(request)).encodings
            assert (special in found.token_ids) is not split
            conversation = pb.Conversation(messages=[{"role": "user", "content": "a<|im_end|>"}])
            answer = await live.stub.ApplyChatTemplate(
                pb.ApplyChatTemplateRequest(conversation=conversation, tokenize=True, split_special_tokens=split)
            )
            assert list(answer.token_ids).count(special) == (1 if split else 2)
            assert live.tokenizer.decode(answer.token_ids, skip_special_tokens=False) == answer.text

    with_tier(trained_folder, call)


def test_texts_are_cut_where_that_is_asked_for(trained_folder: Path) -> None:
    async def call(live: LiveTokenizerTier) -> None:
        text = "The capital of France is Paris."
        ids = live.ids(text)
        for side, kept in ((0, ids[-3:]), (1, ids[-3:]), (2, ids[:3])):
            request = pb.TokenizeRequest(
                texts=[text, ""], truncation={"side": side, "max_tokens": 3}, return_offsets=True
            )
            found, empty = (await live.stub.Tokenize(request)).encodings
            assert (list(found.token_ids), found.num_truncated) == (kept, len(ids) - 3)
            assert len(found.starts) == len(found.ends) == 3 and not empty.num_truncated
        begun = live.ids("<s>" + text)
        (found,) = (
            await live.stub.Tokenize(pb.TokenizeRequest(texts=["<s>" + text], truncation={"max_tokens": 3}))
        ).encodings
        assert list(found.token_ids) == [begun[0], *begun[-2:]]

    with_tier(trained_folder, call)


@pytest.mark.parametrize(
    ("method", "request_", "kind", "word"),
    [
        ("Tokenize", pb.TokenizeRequest(), InvalidRequest, "texts"),
        ("Tokenize", pb.TokenizeRequest(model="other", texts=["a"]), NotFound, "other"),
        ("Detokenize", pb.DetokenizeRequest(), InvalidRequest, "sequences"),
        ("Detokenize", pb.DetokenizeRequest(sequences=[{"ids": [1]}, {"ids": [9999]}]), InvalidRequest, "[1].ids[0]"),
        ("ApplyChatTemplate", pb.ApplyChatTemplateRequest(), InvalidRequest, "conversation.messages"),
        ("CountTokens", pb.CountTokensRequest(), InvalidRequest, "texts"),
        ("CountTokens", pb.CountTokensRequest(model="other", texts=["a"]), NotFound, "other"),
        ("CountTokens", pb.CountTokensRequest(conversations=[{}]), InvalidRequest, "messages"),
        ("Tokenize", pb.TokenizeRequest(texts=["a"], truncation={}), InvalidRequest, "truncation.max_tokens"),
        ("Tokenize", pb.TokenizeRequest(texts=["a"], truncation={"side": 7, "max_tokens": 1}), InvalidRequest, "side"),
        ("Embed", pb.EmbedRequest(), InvalidRequest, "texts: 0 inputs"),
    ],
)  # fmt: skip
def test_bad_calls_are_refused_by_name(
    trained_folder: Path, method: str, request_: Any, kind: type[TokenwireError], word: str
) -> None:
    async def call(live: LiveTokenizerTier) -> None:
        error = await refusal(getattr(live.stub, method)(request_))
        assert type(error) is kind and word in error.message

    with_tier(trained_folder, call)


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


def test_tools_render_as_they_were_written(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "tools", chat_template="{{ tools | tojson }}{{ messages | tojson }}")

    async def call(live: LiveTokenizerTier) -> None:
        conversation = pb.Conversation(
            messages=[
                {"role": "assistant", "tool_calls": [{"id": "c1", "name": "f", "arguments": '{"b": 1, "a": 2.5}'}]}
            ]
        )
        parameters = {"type": "object", "properties": {"n": {"minimum": 1.0, "maximum": 2.5, "enum": [1, 2.0]}}}
        conversation.tools.add(name="f", description="d", parameters_json=json.dumps(parameters))
        answer = await live.stub.ApplyChatTemplate(pb.ApplyChatTemplateRequest(conversation=conversation))
        function = {"name": "f", "description": "d", "parameters": parameters}
        call_ = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": {"b": 1, "a": 2.5}}}
        expected = json.dumps([{"type": "function", "function": function}])
        expected += json.dumps([{"role": "assistant", "content": "", "tool_calls": [call_]}])
        assert answer.text == expected

    with_tier(folder, call)


@pytest.mark.parametrize("split", [False, True])
def test_a_conversation_that_is_wrong_is_told_by_its_place(trained_folder: Path, split: bool) -> None:
    async def call(live: LiveTokenizerTier) -> None:
        good = pb.Conversation(messages=[{"role": "user", "content": "hi"}])
        for bad, field in (
            (pb.Conversation(), "conversations[1].messages"),
            (pb.Conversation(messages=[{"content": "hi"}]), "conversations[1].messages[0].role"),
            (
                pb.Conversation(messages=good.messages, template_arguments_json='{"tools": 1}'),
                "conversations[1].template_arguments.tools",
            ),
        ):
            request = pb.CountTokensRequest(conversations=[good, bad], split_special_tokens=split)
            error = await refusal(live.stub.CountTokens(request))
            assert type(error) is InvalidRequest and error.violations[0].field == field
            assert error.message.startswith(f"{field}: ")

    with_tier(trained_folder, call)


@pytest.mark.parametrize("text", ['{"a": "\\ud800"}', '{"\\udc00": 1}', '{"a": 1e999}', '{"a": [NaN]}', "[1]", "{"])
def test_json_that_cannot_be_written_into_a_prompt_is_refused_by_its_field(trained_folder: Path, text: str) -> None:
    async def call(live: LiveTokenizerTier) -> None:
        user = {"role": "user", "content": "hi"}
        for conversation, field in (
            (
                pb.Conversation(messages=[user], tools=[{"name": "f", "parameters_json": text}]),
                "tools[0].parameters_json",
            ),
            (pb.Conversation(messages=[user], documents_json=[text]), "documents_json[0]"),
            (pb.Conversation(messages=[user], template_arguments_json=text), "template_arguments_json"),
        ):
            error = await refusal(live.stub.ApplyChatTemplate(pb.ApplyChatTemplateRequest(conversation=conversation)))
            assert type(error) is InvalidRequest and error.violations[0].field == f"conversation.{field}"

    with_tier(trained_folder, call)


@pytest.mark.parametrize("split", [False, True])
def test_json_is_nested_within_bounds(tmp_path: Path, split: bool) -> None:
    folder = write_folder(
        tmp_path / "deep", chat_template="{{ [tools, documents, messages, deep | default(0)] | tojson }}"
    )

    def conversation(field: str, text: str) -> pb.Conversation:
        found = pb.Conversation(messages=[{"role": "user", "content": "<s>"}])
        match field:
            case "tools[0].parameters_json":
                found.tools.add(name="f", parameters_json=text)
            case "documents_json[0]":
                found.documents_json.append(text)
            case "template_arguments_json":
                found.template_arguments_json = text
            case _:
                found.messages[0].tool_calls.add(id="1", name="f", arguments=text)
        return found

    async def call(live: LiveTokenizerTier) -> None:
        for field in (
            "tools[0].parameters_json",
            "documents_json[0]",
            "template_arguments_json",
            "messages[0].tool_calls[0].arguments",
        ):

            def apply(num_levels: int, field: str = field) -> Any:
                text = '{"deep":' * (num_levels - 1) + "[]" + "}" * (num_levels - 1)
                return live.stub.ApplyChatTemplate(
                    pb.ApplyChatTemplateRequest(
                        conversation=conversation(field, text), tokenize=True, split_special_tokens=split
                    )
                )

            assert (await apply(127)).text.count('"deep"') >= 125
            for num_levels in (128, 800, 5_000):
                error = await refusal(apply(num_levels))
                assert type(error) is InvalidRequest and error.violations[0].field == f"conversation.{field}"
                assert "at most 127 levels" in str(error)

    with_tier(folder, call)


def test_arguments_that_are_no_json_are_refused(trained_folder: Path) -> None:
    async def call(live: LiveTokenizerTier) -> None:
        conversation = pb.Conversation(
            messages=[{"role": "assistant", "tool_calls": [{"name": "f", "arguments": "{"}]}]
        )
        error = await refusal(live.stub.ApplyChatTemplate(pb.ApplyChatTemplateRequest(conversation=conversation)))
        assert error.violations[0].field == "conversation.messages[0].tool_calls[0].arguments"

    with_tier(trained_folder, call)


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


@pytest.mark.parametrize(
    ("method", "request_", "field"),
    [
        ("Tokenize", pb.TokenizeRequest(texts=[""] * 1025), "texts"),
        ("Detokenize", pb.DetokenizeRequest(sequences=[{}] * 1025), "sequences"),
        ("CountTokens", pb.CountTokensRequest(texts=[""] * 1025), "texts"),
        ("CountTokens", pb.CountTokensRequest(texts=["a"], conversations=[{}] * 1024), "conversations"),
    ],
    ids=["tokenize", "detokenize", "count texts", "count conversations"],
)
def test_more_items_than_a_call_may_bring_are_refused_by_name(
    trained_folder: Path, method: str, request_: Any, field: str
) -> None:
    async def call(live: LiveTokenizerTier) -> None:
        error = await refusal(getattr(live.stub, method)(request_))
        assert type(error) is InvalidRequest and error.violations[0].field == field
        assert "1025" in error.message and "1024" in error.message

    with_tier(trained_folder, call)


def test_a_thousand_items_are_answered(trained_folder: Path) -> None:
    async def call(live: LiveTokenizerTier) -> None:
        texts = ["", "a"] * 512
        ids = live.ids("a")
        encodings = (await live.stub.Tokenize(pb.TokenizeRequest(texts=texts, add_special_tokens=False))).encodings
        assert [list(each.token_ids) for each in encodings] == [[], ids] * 512
        sequences = [{"ids": each.token_ids} for each in encodings]
        assert list((await live.stub.Detokenize(pb.DetokenizeRequest(sequences=sequences))).texts) == texts
        counted = await live.stub.CountTokens(pb.CountTokensRequest(texts=texts, add_special_tokens=False))
        assert list(counted.texts) == [0, len(ids)] * 512

    with_tier(trained_folder, call)


def test_only_small_calls_are_decoded_on_the_event_loop(trained_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sequences count as ids do: each is a call of the library, also where it is empty."""
    monkeypatch.setattr(token_api, "INLINE_IDS", 100)

    async def call(live: LiveTokenizerTier) -> None:
        loop_thread, threads = threading.get_ident(), list[bool]()
        decode = live.tokenizer.decode

        def noted(*args: Any, **options: Any) -> str:
            threads.append(threading.get_ident() == loop_thread)
            return decode(*args, **options)

        monkeypatch.setattr(live.tokenizer, "decode", noted)
        for sequences, inline in (
            ([{"ids": [1] * 99}], True),
            ([{"ids": [1] * 100}], False),
            ([{}] * 100, True),
            ([{}] * 101, False),
        ):
            threads.clear()
            await live.stub.Detokenize(pb.DetokenizeRequest(sequences=sequences))
            assert threads == [inline] * len(sequences)

    with_tier(trained_folder, call)


LARGE = "The capital of France is Paris. " * 4_000
"""More than one piece holds."""


def test_calls_of_the_token_api_hold_up_no_prompts_and_go_with_their_callers(
    trained_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def call(live: LiveTokenizerTier) -> None:
        begun, go_on, sizes = threading.Event(), threading.Event(), list[int]()
        thread = live.server.tier.token_thread
        count_batch = live.tokenizer.count_batch

        def slow(texts: Sequence[str], **options: Any) -> list[int]:
            sizes.append(len(texts))
            begun.set()
            assert go_on.wait(30)
            return count_batch(texts, **options)

        monkeypatch.setattr(live.tokenizer, "count_batch", slow)
        calls = [live.stub.CountTokens(pb.CountTokensRequest(texts=[LARGE, LARGE])) for _ in range(3)]
        try:
            while not begun.is_set():
                await asyncio.sleep(0.001)
            async with asyncio.timeout(20):
                assert (await live.stub.Tokenize(pb.TokenizeRequest(texts=["hi"]))).encodings
                await live.server.tier.encoder.encode(LARGE[:1000])
                await live.server.tier.embedding_thread.run(int)
                for each in calls:
                    each.cancel()
                while thread.num_queued:
                    await asyncio.sleep(0.001)
                after = live.stub.CountTokens(pb.CountTokensRequest(texts=[LARGE]))
                while not thread.num_queued:
                    await asyncio.sleep(0.001)
                go_on.set()
                assert list((await after).texts) == [len(live.ids(LARGE))]
        finally:
            go_on.set()
        assert sizes == [1, 1], "the piece that had begun, and that of the caller who stayed"

    with_tier(trained_folder, call)


def test_texts_that_are_too_large_are_refused_by_name(trained_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_calls, "MAX_TEXT_CHARS", 10)

    async def call(live: LiveTokenizerTier) -> None:
        texts = ["x" * 10, "x" * 11]
        for awaitable in (
            live.stub.Tokenize(pb.TokenizeRequest(texts=texts)),
            live.stub.CountTokens(pb.CountTokensRequest(texts=texts)),
        ):
            error = await refusal(awaitable)
            assert isinstance(error, InvalidRequest) and error.violations[0].field == "texts[1]"
            assert "11 characters" in str(error) and "at most 10" in str(error)

    with_tier(trained_folder, call)
