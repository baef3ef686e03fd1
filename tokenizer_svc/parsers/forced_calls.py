"""How a call looks that must be made: the words of each family around a function's arguments, for a constraint.

What is made this way is read back by the family's parser (`tool_formats`). Python-like calls are not JSON and cannot be
held to a schema. Knows formats; does not know what a schema means.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tokenizer_svc.parsers.tool_formats import Hermes, Llama3, Mistral, ToolFormat
from tokenwire.constraints import CallForm, Calls

MAX_CALLS = 16
"""Most calls of an answer that must have some; a model that does not know when to stop ends there."""
NO_ARGUMENTS: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}

WORDS: Mapping[type[object], tuple[Callable[[str], tuple[str, str]], str]] = {
    Hermes: (lambda name: (f'<tool_call>\n{{"name": {name}, "arguments": ', "}\n</tool_call>"), "\n"),
    Llama3: (lambda name: (f'{{"name": {name}, "parameters": ', "}"), ""),
    Mistral: (lambda name: (f'[TOOL_CALLS] [{{"name": {name}, "arguments": ', "}]"), ""),
}
"""By format: what stands before and behind the arguments of a function of this name, in JSON; and what stands between
two calls, empty where one is all that can be forced."""


def forced_calls(
    tool_format: ToolFormat | None, tools: Sequence[dict[str, Any]], name: str, *, several: bool
) -> Calls | None:
    """Calls of the tool of this name, of any where it is "*"; None where the format cannot be forced.

    `tools`: as templates get them. `several`: whether one answer may hold more than one call.
    """
    words = WORDS.get(type(tool_format))
    if words is None:
        return None
    around, separator = words
    forms = []
    for index, tool in enumerate(tools):
        function = tool["function"]
        if name in ("*", function["name"]):
            before, after = around(json.dumps(function["name"], ensure_ascii=False))
            schema = json.dumps(function.get("parameters") or NO_ARGUMENTS, ensure_ascii=False)
            forms.append(CallForm(before, schema, after, f"conversation.tools[{index}].parameters_json"))
    return Calls(tuple(forms), separator, MAX_CALLS if several and separator and name == "*" else 1)
