"""The default model's own tokenizer and template, against `transformers`."""

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from tokenizer_svc.chat_template import ChatMessage, Conversation, load_chat_template
from tokenizer_svc.detokenizer import Detokenizer
from tokenizer_svc.encoding_cache import EncodingCache
from tokenizer_svc.prompt_encoder import CacheOutcome, PromptEncoder, PromptIds, PromptText
from tokenizer_svc.tokenizer import Tokenizer

pytestmark = pytest.mark.model

TEXTS = [
    "What is the capital of France?",
    " leading, trailing \n\n\t tabs ",
    "Größe, naïve café, Ελλάδα, русский, 日本語, 한국어, العربية, 😀👩‍👩‍👧!",
    "<|im_start|>user\nnot really<|im_end|>",
    "def f(x):\n    return x ** 2  # 12345678",
]


@pytest.mark.parametrize("text", TEXTS)
def test_ids_and_streamed_text_equal_transformers(smollm2_folder: Path, text: str) -> None:
    theirs = AutoTokenizer.from_pretrained(smollm2_folder)
    ours = Tokenizer.load(smollm2_folder)
    ids = ours.encode(text, add_special_tokens=True).token_ids
    assert ids == theirs(text)["input_ids"]
    for skip in (True, False):
        detokenizer = Detokenizer(ours, prompt_ids=[1, 2, 3], skip_special_tokens=skip)
        streamed = "".join(detokenizer.push([token_id]) for token_id in ids) + detokenizer.flush()
        assert streamed == theirs.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False)


@pytest.mark.parametrize(
    "conversation",
    [
        Conversation((ChatMessage("user", "What is the capital of France?"),)),
        Conversation((ChatMessage("system", "Be brief."), ChatMessage("user", "Hi"), ChatMessage("assistant", "Yo"))),
        Conversation((ChatMessage("user", "Count."), ChatMessage("assistant", "One, ")), continue_final_message=True),
        Conversation((ChatMessage("user", "Hi"),), add_generation_prompt=False),
    ],
)
def test_chat_prompts_equal_apply_chat_template(smollm2_folder: Path, conversation: Conversation) -> None:
    theirs = AutoTokenizer.from_pretrained(smollm2_folder)
    ours = Tokenizer.load(smollm2_folder)
    template = load_chat_template(smollm2_folder, ours.special_tokens)
    assert template is not None
    add = conversation.add_generation_prompt
    messages = [{"role": message.role, "content": message.content} for message in conversation.messages]
    expected = theirs.apply_chat_template(
        messages,
        add_generation_prompt=not conversation.continue_final_message if add is None else add,
        continue_final_message=conversation.continue_final_message,
    )["input_ids"]
    text = template.render(conversation)
    assert ours.encode(text, add_special_tokens=False).token_ids == expected
    assert ours.special_tokens == {k: v for k, v in theirs.special_tokens_map.items() if isinstance(v, str)}


@pytest.mark.parametrize("text", [*TEXTS, "<|endoftext|><|im_end|>x<|im_start|>"])
def test_split_special_tokens_equal_transformers(smollm2_folder: Path, text: str) -> None:
    theirs = AutoTokenizer.from_pretrained(smollm2_folder, split_special_tokens=True)
    ours = Tokenizer.load(smollm2_folder)
    assert ours.encode_plain(text) == theirs(text, add_special_tokens=False)["input_ids"]
    (encoding,) = ours.encode_batch([text], add_special_tokens=False, split_special_tokens=True)
    assert encoding.token_ids == ours.encode_plain(text)


def test_cached_conversations_have_the_ids_of_the_whole(smollm2_folder: Path) -> None:
    ours = Tokenizer.load(smollm2_folder)
    template = load_chat_template(smollm2_folder, ours.special_tokens)
    assert template is not None and ours.boundaries
    encoder = PromptEncoder(ours, EncodingCache(2**16))
    messages: list[ChatMessage] = []
    for turn in range(24):
        messages.append(ChatMessage(("user", "assistant")[turn % 2], TEXTS[turn % len(TEXTS)] * (1 + turn % 3)))
        text = template.render(Conversation(tuple(messages)))
        (result,) = encoder.encode([PromptText(text, False)])
        assert isinstance(result, PromptIds)
        assert result.token_ids == ours.encode(text, add_special_tokens=False).token_ids
        assert result.outcome is not CacheOutcome.MISS or turn == 0
