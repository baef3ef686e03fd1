"""Writes the corpus anew from messages and texts that mean something: `python -m tests.fuzz.seeds`.

What fuzzing found is kept beside it, under names that do not begin with `seed-`.
"""

import json

from tests.fakes.tokenizers_trained import CHATML
from tests.fuzz.targets import CORPUS, SEPARATOR
from tokenwire.v1 import common_pb2, model_pb2, tokenizer_pb2

HELLO = common_pb2.Hello(protocol_version=1)
CANCEL = common_pb2.Cancel(handle=1, reason=common_pb2.CANCEL_REASON_CLIENT)
CONTEXT = common_pb2.RequestContext(request_id="r", priority=5, tenant="t", timeout_ms=500)
OPTIONS = common_pb2.GenerationOptions(
    sampling=common_pb2.SamplingParams(temperature=0.8, top_k=5, top_p=0.9, min_p=0.1, seed=3, repetition_penalty=1.1),
    stop=common_pb2.StopConditions(
        max_tokens=5, min_tokens=2, ignore_eos=True, stop_strings=["end"], stop_token_ids=[7]
    ),
    output=common_pb2.OutputOptions(logprobs=2, prompt_logprobs=1, return_token_ids=True),
    num_choices=2,
)
TOOL = {"name": "add", "parametersJson": '{"type": "object"}'}
CONVERSATION = {
    "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
    "tools": [TOOL], "templateArgumentsJson": '{"a": 1}', "addGenerationPrompt": True,
}  # fmt: skip
TEMPLATES = [
    CHATML,
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content | trim }} [/INST]"
    "{% elif m.role == 'assistant' %}{{ m.content }}{{ eos_token }}{% else %}{{ raise_exception('no') }}{% endif %}"
    "{% endfor %}",
    "{% macro one(m) %}{{ m['content'] }}{% endmacro %}{% set ns = namespace(n=0) %}{% for m in messages %}"
    "{% set ns.n = ns.n + loop.index0 %}{{ one(m) }}{% endfor %}{{ tools | tojson(indent=2) }}{{ ns.n }}",
    "{{ messages[-1]['content'][::-1] * 3 }}{{ range(5) | list }}{{ '%s' % messages[0].role }}{{ strftime_now('%Y') }}",
]
CONSTRAINTS = {
    "regex": ["( [a-z]{1,9}){5}[.]", r"\d{3}-\d{4}|[^\W_]+(?:a|b)*", "(a?){30}a{30}"],
    "ebnf": ['root ::= "a" | b\nb ::= [0-9]+ "x"', 'start: "a" | b\nb: /[0-9]+/ "x"'],
    "json_schema": [
        '{"type": "object", "properties": {"a": {"type": "integer", "minimum": 0}}, "required": ["a"]}',
        '{"type": "array", "items": {"enum": ["x", 1, null]}, "maxItems": 3}',
        '{"$defs": {"n": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/n"}]}}, "$ref": "#/$defs/n"}',
    ],
    "choice": ["yes\nno"],
    "json_object": [""],
}
CHAT_BODIES = [
    {"messages": [{"role": "user", "content": "Hi"}], "temperature": 0.5, "stream": True, "n": 2, "stop": ["a"]},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}], "logprobs": True, "top_logprobs": 3,
     "tools": [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}],
     "tool_choice": "required", "parallel_tool_calls": False},
    {"messages": [{"role": "user", "content": "Hi"}], "logit_bias": {"5": -1.5}, "max_completion_tokens": 7,
     "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}}},
]  # fmt: skip
COMPLETION_BODIES = [
    {"prompt": ["a", "b"], "max_tokens": 3, "seed": 1, "stream_options": {"include_usage": True}, "stream": True},
    {"prompt": [[1, 2], [3]], "echo": True, "logprobs": 2, "max_tokens": 0},
]


def token_frames() -> list[list[bytes]]:
    kind, submit = model_pb2.ModelServiceSessionRequest, model_pb2.TokenSubmit
    requests = [
        model_pb2.TokenRequest(token_ids=[1, 2, 3], options=OPTIONS, context=CONTEXT),
        model_pb2.TokenRequest(token_ids=[5] * 20, num_generated_tokens=3, cache_salt="s"),
    ]
    submits = [submit(handle=1 + 4 * index, request=request) for index, request in enumerate(requests)]
    demand = [common_pb2.Demand(priority=1, requests=2, tokens=30)]
    sessions = [
        [kind(hello=HELLO), kind(submits=submits, cancels=[CANCEL]), kind(drain=common_pb2.Drain())],
        [kind(hello=HELLO), kind(submits=submits[1:]), kind(cancels=[CANCEL], demand=demand), kind(submits=submits)],
    ]
    return [[frame.SerializeToString() for frame in frames] for frames in sessions]


def text_frames() -> list[list[bytes]]:
    kind, submit, request = tokenizer_pb2.SessionRequest, tokenizer_pb2.Submit, tokenizer_pb2.TextRequest
    message = tokenizer_pb2.ChatMessage(role="user", content="Hi")
    chat = request(
        conversation=tokenizer_pb2.Conversation(messages=[message], tools=[tokenizer_pb2.ToolDefinition(name="add")])
    )
    submits = [
        submit(handle=1, request=request(text="Hello", options=OPTIONS, context=CONTEXT), initial_credit=3),
        submit(handle=5, request=chat),
        submit(handle=6, request=request(token_ids=common_pb2.TokenIds(ids=[1, 2]), truncate=True)),
    ]
    credit = common_pb2.Credit(handle=1, tokens=9)
    sessions = [
        [kind(hello=HELLO), kind(submits=submits, cancels=[CANCEL], credits=[credit]), kind(drain=common_pb2.Drain())],
        [kind(hello=HELLO), kind(submits=submits[:1]), kind(credits=[credit]), kind(submits=submits[1:])],
    ]
    return [[frame.SerializeToString() for frame in frames] for frames in sessions]


def seeds() -> dict[str, list[list[bytes]]]:
    """By target, the parts of each input."""
    conversation = json.dumps(CONVERSATION).encode()
    bodies = [(b"chat", body) for body in CHAT_BODIES] + [(b"completions", body) for body in COMPLETION_BODIES]
    return {
        "token_session": token_frames(),
        "text_session": text_frames(),
        "chat_template": [[template.encode(), conversation] for template in TEMPLATES],
        "constraint": [[name.encode(), text.encode()] for name, texts in CONSTRAINTS.items() for text in texts],
        "openai_body": [[name, json.dumps(body).encode()] for name, body in bodies],
    }


def main() -> None:
    for target, inputs in seeds().items():
        folder = CORPUS / target
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("seed-*"):
            old.unlink()
        for number, parts in enumerate(inputs):
            (folder / f"seed-{number}").write_bytes(SEPARATOR.join(parts))


if __name__ == "__main__":
    main()
