"""Tools for models whose chat template knows none: written into the messages, in the words and form of Hermes.

Functions go into the system message, calls into the assistant's text, results into a message of the user, as the
templates of Hermes 2 Pro and Qwen2.5 write them; the answer is then read by the parser for that form. Works on messages
as templates see them. Whether a model that was not trained on it makes good calls is another matter.
"""

import json
from collections.abc import Sequence
from typing import Any

INSTRUCTIONS = """\
You may call one or more functions to assist with the user query. Their signatures are within <tools></tools>:
<tools>
{tools}
</tools>

For each function call, return a JSON object with the function's name and its arguments within <tool_call></tool_call>:
<tool_call>
{{"name": <name of the function>, "arguments": <arguments as a JSON object>}}
</tool_call>"""


def with_tools_written_out(messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same conversation in messages of system, user and assistant alone. Changes neither argument.

    `messages`: at least one. `tools` may be none: calls and results are written out all the same.
    """
    instructions = INSTRUCTIONS.format(tools="\n".join(map(_json, tools)))
    found: list[dict[str, Any]] = []
    if tools and messages[0]["role"] != "system":
        found.append({"role": "system", "content": instructions})
    for index, message in enumerate(messages):
        content = message["content"]
        if index == 0 and tools and message["role"] == "system":
            found.append({**message, "content": f"{content}\n\n{instructions}"})
        elif message["role"] == "tool":
            result = f"<tool_response>\n{content}\n</tool_response>"
            if index and messages[index - 1]["role"] == "tool":
                found[-1]["content"] += f"\n{result}"
            else:
                found.append({"role": "user", "content": result})
        elif message.get("tool_calls"):
            calls = [f"<tool_call>\n{_json(call['function'])}\n</tool_call>" for call in message["tool_calls"]]
            others = {key: value for key, value in message.items() if key != "tool_calls"}
            found.append({**others, "content": "\n".join([content, *calls] if content else calls)})
        else:
            found.append(dict(message))
    return found


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
