import pytest

from tokenizer_svc.parsers.families import TOOL_FORMATS, reasoning_tags_of, tool_format_of
from tokenizer_svc.parsers.reasoning import REASONING_TAGS

QWEN3 = "<tool_call>{'name': name}</tool_call>{% if '</think>' in content %}{{ content.split('</think>') }}{% endif %}"
LLAMA = 'Respond in the format {"name": function name, "parameters": dictionary of argument name and its value}.'


@pytest.mark.parametrize(
    ("template", "tools", "reasoning"),
    [
        (QWEN3, "hermes", "think"),
        (LLAMA, "llama3", None),
        ("{{- '<|python_tag|>' + message.content }}", "llama3", None),
        ("{{ '[TOOL_CALLS] [' }}", "mistral", None),
        ("{{ '[TOOL_CALLS]' + name + '[ARGS]' }}[THINK]", "mistral", "mistral"),
        ("format of [func_name1(params_name1=params_value1)] <|python_tag|>", "pythonic", None),
        ("<tool_call>\n<function=example>", None, None),
        ("<tool_call>{name}\n<arg_key>{key}</arg_key> <think>", None, "think"),
        ("<seed:think>", None, "seed"),
        ("{{ messages[0].content }}", None, None),
    ],
)
def test_a_family_is_known_by_what_its_template_writes(template: str, tools: str | None, reasoning: str | None) -> None:
    assert tool_format_of(template) is (TOOL_FORMATS[tools] if tools else None)
    assert reasoning_tags_of(template) == (REASONING_TAGS[reasoning] if reasoning else None)


def test_a_prompt_that_ends_with_the_opening_tag_begins_the_reasoning() -> None:
    tags = REASONING_TAGS["think"]
    assert tags.begun_by("<|assistant|>\n<think>\n")
    assert not tags.begun_by("<|assistant|>\n<think>\n\n</think>\n\n")
    assert not tags.begun_by("What is <think>?<|assistant|>")
