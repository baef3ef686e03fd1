import json
import re
from pathlib import Path

import pytest
import tokenizers

from tests.fakes.tokenizers_trained import CHATML, TRAINED, write_folder
from tests.fakes.tool_model import CALL, TEMPLATE, WEATHER, tool_folder
from tokenizer_svc.answers import AnswerFormat, new_call_id
from tokenizer_svc.chat_template import ChatMessage, Conversation, load_chat_template
from tokenizer_svc.detokenizer import Detokenizer
from tokenizer_svc.generation import ChoiceText
from tokenizer_svc.parsers.families import TOOL_FORMATS
from tokenizer_svc.parsers.reasoning import REASONING_TAGS
from tokenizer_svc.tokenizer import Tokenizer
from tokenwire.parsed import Parsed, ToolCall
from tokenwire.requests import FinishReason, Terminal, Usage

ASK = (ChatMessage("user", "hi"),)


def chosen(folder: Path, tool_parser: str = "auto", reasoning_parser: str = "auto") -> AnswerFormat:
    tokenizer = Tokenizer.load(folder)
    template = load_chat_template(folder, tokenizer.special_tokens)
    return AnswerFormat.choose(tokenizer, template, tool_parser=tool_parser, reasoning_parser=reasoning_parser)


def test_ids_are_of_the_familys_form_and_never_the_same() -> None:
    ids = {new_call_id() for _ in range(1000)}
    assert len(ids) == 1000 and all(re.fullmatch(r"call_[A-Za-z0-9]{24}", found) for found in ids)
    assert all(re.fullmatch(r"[A-Za-z0-9]{9}", new_call_id(9)) for _ in range(100))


def test_parsers_are_chosen_by_the_template_or_by_settings(tmp_path: Path) -> None:
    folder = tool_folder(tmp_path)
    found = chosen(folder)
    assert (found.tools_name, found.reasoning_name) == ("hermes", "think")
    assert len(found.shown_ids) == 4 and found.shown_ids < found.special_ids
    found = chosen(folder, "mistral", "seed")
    assert (found.tools, found.reasoning) == (TOOL_FORMATS["mistral"], REASONING_TAGS["seed"])
    found = chosen(folder, "none", "none")
    assert found.tools is None and found.reasoning is None and not found.refuse_tools
    plain = chosen(write_folder(tmp_path / "plain"))
    assert (plain.tools_name, plain.reasoning_name) == ("hermes", "none"), "tools are written into the messages"
    bare = chosen(write_folder(tmp_path / "bare", chat_template=None))
    assert bare == AnswerFormat()


def test_nothing_is_made_for_a_request_that_needs_no_parser(tmp_path: Path) -> None:
    plain = chosen(write_folder(tmp_path / "plain"))
    assert plain.split("text", "") is None and plain.split((1, 2), "") is None
    assert plain.split(Conversation(ASK), "") is None
    assert plain.split(Conversation(ASK, tools=(WEATHER,)), "") is not None
    assert chosen(tool_folder(tmp_path)).split(Conversation(ASK), "") is not None


def test_pieces_of_a_call_have_its_index() -> None:
    answers = AnswerFormat(tools=TOOL_FORMATS["hermes"])
    splitter = answers.split(Conversation(ASK, tools=(WEATHER,)), "")
    assert splitter is not None
    pieces: list[ToolCall] = []
    for char in CALL * 2:
        assert splitter.push(char) == ""
        if (parsed := splitter.take()) is not None:
            pieces += parsed.tool_calls
    assert splitter.finish("") == "" and splitter.take() is None
    assert [piece.index for piece in pieces] == sorted(piece.index for piece in pieces)
    whole = Parsed()
    whole.extend(Parsed(tool_calls=pieces))
    assert [call.name for call in whole.tool_calls] == ["get_weather"] * 2
    assert [json.loads(call.arguments) for call in whole.tool_calls] == [{"city": "Zürich"}] * 2
    assert len([piece for piece in pieces if piece.id]) == len([piece for piece in pieces if piece.name]) == 2


@pytest.mark.parametrize("family", TRAINED)
@pytest.mark.parametrize("prompt", ["", "hello", "hello<|im_end|>", "<|im_start|>"])
def test_the_text_is_that_of_a_plain_request_with_markers(family: str, prompt: str, tmp_path: Path) -> None:
    """Special tokens that are markers are shown, the others skipped, and spaces stand as they would without."""
    trained: tokenizers.Tokenizer = TRAINED[family]()
    trained.add_special_tokens(["<tool_call>", "</tool_call>"])
    folder = write_folder(tmp_path / "model", trained, chat_template=TEMPLATE)
    tokenizer, answers = Tokenizer.load(folder), chosen(folder, "auto", "none")
    prompt_ids = tokenizer.encode(prompt, add_special_tokens=False).token_ids
    for text in ("The token was long", "<|im_start|>The token</s> was<|im_end|> long"):
        ids = tokenizer.encode(text, add_special_tokens=False).token_ids
        plain = answers.detokenizer(tokenizer, prompt_ids, skip_special_tokens=True, spaces_between_special_tokens=True)
        shown = "".join(plain.push([token_id]) for token_id in ids) + plain.flush()
        reference = Detokenizer(tokenizer, prompt_ids=prompt_ids)
        assert shown == "".join(reference.push([token_id]) for token_id in ids) + reference.flush()
    ids = tokenizer.encode("<tool_call>The token</tool_call>", add_special_tokens=False).token_ids
    marked = answers.detokenizer(tokenizer, prompt_ids, skip_special_tokens=True, spaces_between_special_tokens=True)
    shown = marked.push(ids) + marked.flush()
    assert re.sub(r"\s", "", shown) == re.sub(r"\s", "", tokenizer.decode(ids, skip_special_tokens=False))
    assert "<tool_call>" in shown and "</tool_call>" in shown


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("thinking", [False, True])
@pytest.mark.parametrize("num_together", [1, 3, 1000])
def test_tokens_of_reasoning_are_counted_within_its_tags(
    num_together: int, thinking: bool, special: bool, tmp_path: Path
) -> None:
    """From the one that completes the opening tag, or from the first where the prompt has opened it."""
    folder = tool_folder(tmp_path, special)
    tokenizer, answers = Tokenizer.load(folder), chosen(folder)
    tags = ("" if thinking else "<think>", "</think>")
    opening, inside, closing, after = (
        tokenizer.encode(part, add_special_tokens=False).token_ids
        for part in (tags[0], "I must ask.", tags[1], "Wait for me.")
    )
    for ids, reasoned in (
        ([*opening, *inside, *closing, *after], (0 if thinking else 1) + len(inside) + len(closing)),
        ([*opening, *inside], (0 if thinking else 1) + len(inside)),
        (after, len(after) if thinking else 0),
        ([*opening, *inside, *closing, *after, *inside], (0 if thinking else 1) + len(inside) + len(closing)),
    ):
        text = ChoiceText(
            answers.detokenizer(tokenizer, (), skip_special_tokens=True, spaces_between_special_tokens=True),
            None,
            5,
            splitter=answers.split(Conversation(ASK), "<think>\n" if thinking else ""),
        )
        for begin in range(0, len(ids), num_together):
            text.push(ids[begin : begin + num_together])
        _, terminal = text.finish(Terminal(FinishReason.LENGTH, Usage(5, 1, len(ids))))
        assert terminal == Terminal(FinishReason.LENGTH, Usage(5, 1, len(ids), reasoned))
        assert text.end(FinishReason.DEADLINE)[1].usage == Usage(5, 0, len(ids), reasoned)


def test_a_template_without_tools_gets_them_in_the_messages(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "plain", chat_template=CHATML)
    template = load_chat_template(folder, {})
    assert template is not None and not template.reads_tools
    call = {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": {"city": "Zürich"}}}
    messages = (
        ChatMessage("user", "hi"),
        ChatMessage("assistant", "Wait.", tool_calls=(call, call)),
        ChatMessage("tool", "3", tool_call_id="c1"),
        ChatMessage("tool", "4", tool_call_id="c2"),
    )
    text = template.render(Conversation(messages, tools=(WEATHER,)))
    made = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Zürich"}}\n</tool_call>'
    assert text.startswith("<|im_start|>system\nYou may call") and json.dumps(WEATHER) in text
    assert f"<|im_start|>assistant\nWait.\n{made}\n{made}<|im_end|>" in text
    results = "<tool_response>\n3\n</tool_response>\n<tool_response>\n4\n</tool_response>"
    assert f"<|im_start|>user\n{results}<|im_end|>" in text and "<|im_start|>tool" not in text
    system = (ChatMessage("system", "Be brief."), *messages)
    assert "<|im_start|>system\nBe brief.\n\nYou may call" in template.render(Conversation(system, tools=(WEATHER,)))
    without = template.render(Conversation(messages))
    assert "You may call" not in without and results in without and made in without
    assert template.render(Conversation(ASK)) == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize(
    ("source", "reads"),
    [
        (TEMPLATE, True),
        (
            "{% if not tools is defined %}{% set tools = none %}{% endif %}"
            "{% for m in messages %}{{ m.content }}{% endfor %}{{ tools }}",
            True,
        ),
        ("{% for m in messages %}You have tools.{{ m.tools }}{% endfor %}", False),
    ],
)
def test_whether_a_template_reads_tools(tmp_path: Path, source: str, reads: bool) -> None:
    template = load_chat_template(write_folder(tmp_path / "m", chat_template=source), {})
    assert template is not None and template.reads_tools is reads
