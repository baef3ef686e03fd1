"""Which parsers a model needs, by what its chat template writes. Knows templates as texts alone."""

from tokenizer_svc.parsers.pythonic import Pythonic
from tokenizer_svc.parsers.reasoning import REASONING_TAGS, ReasoningTags
from tokenizer_svc.parsers.tool_formats import Hermes, Llama3, Mistral, ToolFormat

TOOL_FORMATS: dict[str, ToolFormat] = {
    "hermes": Hermes(),
    "llama3": Llama3(),
    "mistral": Mistral(),
    "pythonic": Pythonic(),
}

OTHER_FORMATS = ("<function=", "<arg_key>")
"""Formats that use Hermes' marker and write something else into it: Qwen3-Coder, GLM-4.5."""
MARKS: tuple[tuple[str, str], ...] = (
    ("[TOOL_CALLS]", "mistral"),
    ("<|python_start|>", "pythonic"),
    ("[func_name1(", "pythonic"),
    ("<|python_tag|>", "llama3"),
    ('{"name": function name, "parameters":', "llama3"),
    ("<tool_call>", "hermes"),
)
"""What stands in the template of a family; the first that is found decides."""


def tool_format_of(template: str) -> ToolFormat | None:
    """The format that a template with tools asks the model for; None where it is not one that is known."""
    if any(mark in template for mark in OTHER_FORMATS):
        return None
    for mark, name in MARKS:
        if mark in template:
            return TOOL_FORMATS[name]
    return None


def reasoning_tags_of(template: str) -> ReasoningTags | None:
    """The tags that a template writes or takes out; None for a model that does not reason in any that are known."""
    for tags in REASONING_TAGS.values():
        if tags.opening in template or tags.closing in template:
            return tags
    return None
