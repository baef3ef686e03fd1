import json
from pathlib import Path
from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from tests.fakes.tokenizers_trained import CHATML, write_folder
from tokenizer_svc.chat_template import ChatMessage, ChatTemplate, Conversation, load_chat_template
from tokenizer_svc.tool_prompt import with_tools_written_out
from tokenwire.errors import FailedPrecondition, InvalidRequest

TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TOOLS = """
{%- macro show(tool) %}{{ tool | tojson(indent=2) }}{% endmacro -%}
{{- bos_token }}
{%- if tools is not none %}
    {%- for tool in tools %}
        {{- show(tool) ~ '\\n' }}
        {{- tool.function.parameters.properties | tojson }}
    {%- endfor %}
{%- endif %}
{%- set ns = namespace(calls=0) %}
{%- for message in messages %}
    {%- if message.role == 'tool' %}
        {{- '[RESULT ' ~ message.tool_call_id ~ ']' ~ message.content }}
        {%- continue %}
    {%- endif %}
    {%- if message.tool_calls is defined and message.tool_calls %}
        {%- for call in message.tool_calls %}
            {%- set ns.calls = ns.calls + 1 %}
            {{- '[CALL ' ~ call.id ~ ' ' ~ call.function.name ~ ' ' ~ (call.function.arguments | tojson) ~ ']' }}
        {%- endfor %}
    {%- endif %}
    {%- generation %}{{- message.role ~ ': ' ~ message.content | trim ~ eos_token }}{%- endgeneration %}
{%- endfor %}
{{- ns.calls }}
{%- if add_generation_prompt %}{{- 'assistant:' }}{%- endif %}
"""
DOCUMENTS = """
{% for document in documents or [] %}
<doc {{ loop.index }} title="{{ document['title'] }}">{{ document['text'] }}</doc>
{% endfor %}
{% for m in messages %}
    {% if m['role'] == 'system' and not loop.first %}{{ raise_exception('system only first') }}{% endif %}
{{ m['role'] | upper }}|{{ m['content'].strip() }}|{{ m.get('reasoning_content', '-') }}|{{ m.thinking is defined }}
{% endfor %}
{% if enable_thinking is defined and enable_thinking %}<think>{% endif %}
"""
TRIMMING = "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}</{{ m.role }}>\n{% endfor %}"
TEMPLATES = {"smollm2": SMOLLM2, "chatml": CHATML, "tools": TOOLS, "documents": DOCUMENTS, "trimming": TRIMMING}

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": 'What it\'s like <outside> & "about" – Größe',
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Köln", "days": 2}}}
CHATS = {
    "one": Conversation((ChatMessage("user", "What is the capital of France?"),)),
    "system": Conversation(
        (ChatMessage("system", "Be brief."), ChatMessage("user", " Hi \n"), ChatMessage("assistant", "Hello"))
    ),
    "tools": Conversation(
        (
            ChatMessage("user", "Weather?"),
            ChatMessage("assistant", "", tool_calls=(CALL,), reasoning="I must call."),
            ChatMessage("tool", '{"t": 3}', tool_call_id="c1"),
        ),
        tools=(WEATHER,),
    ),
    "documents": Conversation(
        (ChatMessage("user", "Summarise <this> & that", name="ada"),),
        documents=({"title": "One", "text": "1 < 2"}, {"title": "Two", "text": "ü"}),
        template_arguments={"enable_thinking": True},
        add_generation_prompt=False,
    ),
    "continued": Conversation(
        (ChatMessage("user", "Count."), ChatMessage("assistant", "One, two, ")), continue_final_message=True
    ),
}  # fmt: skip


def template_of(source: str, **options: Any) -> ChatTemplate:
    return ChatTemplate(source, special_tokens=TOKENS, **{"max_output_chars": 100_000, **options})


def by_transformers(source: str, chat: Conversation) -> str:
    messages = []
    for message in chat.messages:
        shown: dict[str, Any] = {"role": message.role, "content": message.content}
        if message.name:
            shown["name"] = message.name
        if message.tool_calls:
            shown["tool_calls"] = list(message.tool_calls)
        if message.tool_call_id:
            shown["tool_call_id"] = message.tool_call_id
        if message.reasoning:
            shown["reasoning_content"] = message.reasoning
        messages.append(shown)
    if chat.tools and "tools" not in source:
        messages = with_tools_written_out(messages, chat.tools)
    add = chat.add_generation_prompt
    rendered, _ = render_jinja_template(
        conversations=[messages],
        tools=list(chat.tools) or None,
        documents=list(chat.documents) or None,
        chat_template=source,
        continue_final_message=chat.continue_final_message,
        add_generation_prompt=not chat.continue_final_message if add is None else add,
        **TOKENS,
        **chat.template_arguments,
    )
    return str(rendered[0])


@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("template", TEMPLATES)
def test_renders_what_transformers_renders(template: str, chat: str) -> None:
    source, conversation = TEMPLATES[template], CHATS[chat]
    assert template_of(source).render(conversation) == by_transformers(source, conversation)


@pytest.mark.model
def test_the_template_of_a_real_model(smollm2_folder: Path) -> None:
    source = (smollm2_folder / "chat_template.jinja").read_text()
    template = load_chat_template(smollm2_folder, TOKENS)
    assert template is not None
    for chat in CHATS.values():
        assert template.render(chat) == by_transformers(source, chat)


def test_continued_message_is_left_open() -> None:
    assert template_of(SMOLLM2).render(CHATS["continued"]).endswith("<|im_start|>assistant\nOne, two, ")
    assert template_of(TRIMMING).render(CHATS["continued"]).endswith("<assistant>One, two,")


def test_a_list_of_templates_and_the_one_for_tools(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps(
            {"chat_template": [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools"}]}
        )
    )
    template = load_chat_template(tmp_path, TOKENS)
    assert template is not None
    assert template.render(CHATS["one"]) == "plain"
    assert template.render(CHATS["tools"]) == "tools"


def test_a_folder_without_a_template(tmp_path: Path) -> None:
    assert load_chat_template(write_folder(tmp_path, chat_template=None), TOKENS) is None


def test_strftime_now_and_dict() -> None:
    assert len(template_of("{{ strftime_now('%Y') }}").render(CHATS["one"])) == 4
    assert template_of("{{ dict(a=1)['a'] }}").render(CHATS["one"]) == "1"


@pytest.mark.parametrize(
    ("source", "chat", "says"),
    [
        ("{{ raise_exception('roles must alternate') }}", "one", "roles must alternate"),
        ("{{ messages[0].content + 1 }}", "one", "TypeError"),
        ("{{ messages[7]['content'] }}", "one", "refuses it"),
        ("{{ ''.__class__.__mro__ }}", "one", "unsafe"),
        ("{{ messages.append(1) }}", "one", "unsafe"),
        ("{% set n = namespace() %}{% set n.__class__ = 1 %}", "one", "refuses it"),
        ("{% for i in range(10**9) %}x{% endfor %}", "one", "Range too big"),
        ("{% for i in range(90000) %}xxxxxxxxxxxx{% endfor %}", "one", "longer than"),
        ("no messages here", "continued", "does not read"),
        ("content {{ messages[0]['role'] }}", "continued", "does not render the final message"),
    ],
)
def test_what_does_not_render_is_a_clear_refusal(source: str, chat: str, says: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        template_of(source).render(CHATS[chat])
    assert says in str(caught.value)
    assert caught.value.violations[0].field.startswith("conversation.")


def test_impossible_conversations_are_refused() -> None:
    template = template_of(SMOLLM2)
    message = ChatMessage("assistant", "x")
    for conversation, field in (
        (Conversation(()), "conversation.messages"),
        (Conversation((ChatMessage("assistant"),), continue_final_message=True), "conversation.continue_final_message"),
        (
            Conversation((message,), continue_final_message=True, add_generation_prompt=True),
            "conversation.add_generation_prompt",
        ),
        (Conversation((message,), template_arguments={"tools": []}), "conversation.template_arguments.tools"),
    ):
        with pytest.raises(InvalidRequest) as caught:
            template.render(conversation)
        assert caught.value.violations[0].field == field


@pytest.mark.parametrize(
    "source",
    [
        "{% if %}",
        "{{ messages[0]['content'][::,2] }}",
        "{{ " + "1" * 5000 + " }}",
        "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
        "{% if true %}" * 200 + "{% endif %}" * 200,
    ],
    ids=["no Jinja", "Jinja that becomes no Python", "a number of many digits", "deep brackets", "deep blocks"],
)
def test_a_template_that_does_not_compile_is_found_at_start(source: str) -> None:
    with pytest.raises(FailedPrecondition, match="does not compile"):
        template_of(source)
