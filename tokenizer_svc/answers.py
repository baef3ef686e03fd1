"""What becomes of a model's raw text: how this model's answers are split, chosen once, and the splitting of one answer.

Answers to conversations alone are split: who sends a text or token ids gets the text as it was generated. Knows tokens
only as far as special ones go: markers are often special tokens, which are shown to the parser and to nobody else.
"""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from tokenizer_svc.chat_template import ChatTemplate, Conversation
from tokenizer_svc.detokenizer import CONTEXT_TOKENS, Detokenizer
from tokenizer_svc.parsers.answer_parser import AnswerParser
from tokenizer_svc.parsers.families import TOOL_FORMATS, reasoning_tags_of, tool_format_of
from tokenizer_svc.parsers.forced_calls import forced_calls
from tokenizer_svc.parsers.parts import Kind, Part
from tokenizer_svc.parsers.reasoning import REASONING_TAGS, ReasoningTags
from tokenizer_svc.parsers.tool_formats import ToolFormat
from tokenizer_svc.tokenizer import Tokenizer
from tokenwire.constraints import Calls, FreeText
from tokenwire.errors import FailedPrecondition, FieldViolation, InvalidRequest
from tokenwire.parsed import Parsed, ToolCall

ID_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
ID_CHARS = 24
"""After "call_", as OpenAI's are."""


def new_call_id(num_chars: int = 0) -> str:
    """An id that no other call has; `num_chars` alone where a family insists on that, else in OpenAI's form."""
    letters = "".join(secrets.choice(ID_LETTERS) for _ in range(num_chars or ID_CHARS))
    return letters if num_chars else f"call_{letters}"


class AnswerSplitter:
    """One answer: raw text in, content out; what is split from it waits in `take`."""

    __slots__ = ("_index", "_parsed", "_parser", "closing", "_id_chars")

    def __init__(self, parser: AnswerParser, tools: ToolFormat | None) -> None:
        self._parser = parser
        self._parsed: Parsed | None = None
        self._index = -1
        self._id_chars = tools.id_chars if tools is not None else 0
        self.closing = tools.closing if tools is not None else ""
        """What an answer ends with that ends with a call."""

    @property
    def in_reasoning(self) -> bool:
        """Whether the text so far ends within reasoning."""
        return self._parser.in_reasoning

    @property
    def finished(self) -> bool:
        """Whether what follows is nothing: the one call that was wanted is there."""
        return self._parser.finished

    def push(self, text: str) -> str:
        """More of the raw text. Returns new content."""
        return self._sort(self._parser.push(text))

    def finish(self, text: str) -> str:
        """The last of the raw text, which may be empty. Returns the last content."""
        return self._sort(self._parser.push(text)) + self._sort(self._parser.flush())

    def take(self) -> Parsed | None:
        """Reasoning and pieces of calls that came since the last time."""
        parsed, self._parsed = self._parsed, None
        return parsed

    def _sort(self, parts: list[Part]) -> str:
        content = ""
        for part in parts:
            if part.kind is Kind.TEXT:
                content += part.value
            elif part.kind is not Kind.MARKUP:
                self._add(part)
        return content

    def _add(self, part: Part) -> None:
        if self._parsed is None:
            self._parsed = Parsed()
        if part.kind is Kind.REASONING:
            self._parsed.reasoning += part.value
        elif part.kind is Kind.CALL:
            self._index += 1
            self._parsed.add_call(ToolCall(new_call_id(self._id_chars), part.value, index=self._index))
        else:
            self._parsed.add_call(ToolCall(arguments=part.value, index=self._index))


@dataclass(frozen=True, slots=True)
class AnswerFormat:
    """How one model's answers are split."""

    tools: ToolFormat | None = None
    reasoning: ReasoningTags | None = None
    refuse_tools: bool = False
    """The model has a format for calls that is not known here, and nobody said that it shall pass as text."""
    special_ids: frozenset[int] = frozenset()
    shown_ids: frozenset[int] = frozenset()
    """Special tokens that are markers: the parser sees them."""
    hidden: frozenset[str] = frozenset()
    """Their texts."""

    @classmethod
    def choose(
        cls, tokenizer: Tokenizer, template: ChatTemplate | None, *, tool_parser: str, reasoning_parser: str
    ) -> "AnswerFormat":
        """By the settings of these names; `auto`: by the model's template. Without a template nothing is split."""
        if template is None:
            return cls()
        tools = TOOL_FORMATS.get(tool_parser)
        if tool_parser == "auto":
            tools = tool_format_of(template.tool_source) if template.reads_tools else TOOL_FORMATS["hermes"]
        reasoning = REASONING_TAGS.get(reasoning_parser)
        if reasoning_parser == "auto":
            reasoning = reasoning_tags_of(template.source)
        markers = {*tools.openers, *tools.markers} if tools is not None else set()
        markers |= {reasoning.opening, reasoning.closing} if reasoning is not None else set()
        special = tokenizer.special_texts
        return cls(
            tools,
            reasoning,
            refuse_tools=tool_parser == "auto" and tools is None,
            special_ids=frozenset(special),
            shown_ids=frozenset(token_id for token_id, text in special.items() if text in markers),
            hidden=frozenset(text for text in special.values() if text in markers),
        )

    @property
    def tools_name(self) -> str:
        """The format of calls, for people."""
        return next((name for name, known in TOOL_FORMATS.items() if known is self.tools), "none")

    @property
    def reasoning_name(self) -> str:
        """The tags around reasoning, for people."""
        return next((name for name, known in REASONING_TAGS.items() if known is self.reasoning), "none")

    def check(self, conversation: Conversation) -> None:
        """Raise FailedPrecondition for tools whose calls could not be told from text."""
        if conversation.tools and self.refuse_tools:
            field = "conversation.tools"
            description = "this model's chat template writes tool calls in a format that is not known here"
            raise FailedPrecondition(
                f"{field}: {description}; tool-parser none of the tokenizer tier passes them on as text",
                reason="TOOL_FORMAT_UNKNOWN",
                violations=[FieldViolation(field, description)],
            )

    def forced_calls(self, source: object) -> Calls | None:
        """What an answer to `source` must be where it has to be a call; None where the model decides.

        Raises InvalidRequest where this model's calls cannot be forced.
        """
        if not isinstance(source, Conversation) or not source.required_tool:
            return None
        several = source.parallel_tool_calls
        calls = forced_calls(self.tools, source.tools, source.required_tool, several=several)
        if calls is None:
            field = "conversation.required_tool"
            description = f"calls in this model's format ({self.tools_name}) cannot be forced; leave them to the model"
            violations = [FieldViolation(field, description)]
            raise InvalidRequest(f"{field}: {description}", reason="TOOL_NOT_FORCIBLE", violations=violations)
        return calls

    def free_text(self, source: object, prompt: str) -> FreeText | None:
        """What an answer to `source`, rendered as `prompt`, may begin with before its content; None: nothing."""
        if self.reasoning is None or not isinstance(source, Conversation):
            return None
        return FreeText(self.reasoning.opening, self.reasoning.closing, self.reasoning.begun_by(prompt))

    def split(self, source: object, prompt: str, *, skip_special_tokens: bool = True) -> AnswerSplitter | None:
        """Begin an answer to `source`, rendered as `prompt`; None where nothing is split from it."""
        if not isinstance(source, Conversation):
            return None
        tools = self.tools if source.tools else None
        if tools is None and self.reasoning is None:
            return None
        parser = AnswerParser(
            tools=tools,
            names=frozenset(tool["function"]["name"] for tool in source.tools),
            reasoning=self.reasoning,
            begins_inside=self.reasoning is not None and self.reasoning.begun_by(prompt),
            hidden=self.hidden if skip_special_tokens else frozenset(),
            max_calls=None if source.parallel_tool_calls else 1,
        )
        return AnswerSplitter(parser, tools)

    def detokenizer(
        self,
        tokenizer: Tokenizer,
        prompt_ids: Sequence[int],
        *,
        skip_special_tokens: bool,
        spaces_between_special_tokens: bool,
    ) -> Detokenizer:
        """Of an answer that is split: shows markers though they be special tokens."""
        if not skip_special_tokens:
            return Detokenizer(
                tokenizer,
                prompt_ids=prompt_ids,
                skip_special_tokens=False,
                spaces_between_special_tokens=spaces_between_special_tokens,
            )
        before = [token_id for token_id in prompt_ids[-CONTEXT_TOKENS:] if token_id not in self.special_ids]
        return _MarkerDetokenizer(tokenizer, before, self.special_ids - self.shown_ids)


class _MarkerDetokenizer(Detokenizer):
    """Skips special tokens but for some."""

    def __init__(self, tokenizer: Tokenizer, prompt_ids: Sequence[int], skipped: frozenset[int]) -> None:
        super().__init__(tokenizer, prompt_ids=prompt_ids, skip_special_tokens=False)
        self._skipped = skipped

    def push(self, token_ids: Sequence[int]) -> str:
        """As `Detokenizer.push`."""
        return super().push([token_id for token_id in token_ids if token_id not in self._skipped])
