"""What an output must look like, as plain values every tier shares.

Knows the forms and how large one may be. Does not know what a grammar, an expression or a schema means: that is found
out where it is compiled (`model_svc.grammar`).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from tokenwire.errors import FieldViolation

MAX_CHOICES = 4096
"""Texts of one choice."""


class ConstraintForm(Enum):
    """The forms; the names are those of the wire."""

    JSON_SCHEMA = "json_schema"
    JSON_OBJECT = "json_object"
    REGEX = "regex"
    CHOICE = "choice"
    EBNF = "ebnf"
    CALLS = "calls"


MAX_BYTES = {
    ConstraintForm.JSON_SCHEMA: 262_144,
    ConstraintForm.REGEX: 16_384,
    ConstraintForm.CHOICE: 65_536,
    ConstraintForm.EBNF: 65_536,
    ConstraintForm.CALLS: 262_144,
}
"""UTF-8 bytes of one constraint, the texts of a choice together."""


MAX_MARKER_BYTES = 64
MAX_CALL_FORMS = 256
MAX_CALLS = 128
MAX_CALL_TEXT_BYTES = 1024


@dataclass(frozen=True, slots=True)
class FreeText:
    """Text that may come before the form and that nothing is asked of, such as reasoning."""

    opening: str
    """What it begins with, when it comes."""
    closing: str
    """What it ends with."""
    is_open: bool = False
    """The prompt has begun it: it comes, and without its opening."""

    def violations(self, field: str) -> list[FieldViolation]:
        """Everything wrong with the markers."""
        found = []
        for name, text, fewest in (("opening", self.opening, 0 if self.is_open else 1), ("closing", self.closing, 1)):
            if not fewest <= len(text.encode(errors="replace")) <= MAX_MARKER_BYTES or "\0" in text:
                allowed = f"{fewest} to {MAX_MARKER_BYTES} bytes, none of them zero"
                found.append(FieldViolation(f"{field}.{name}", f"{text[:80]!r} is not allowed: {allowed}"))
        return found


@dataclass(frozen=True, slots=True)
class CallForm:
    """What one call of a function may be: a text, JSON, and a text."""

    before: str
    """What names a special token of the model is that token."""
    schema_json: str
    """JSON schema of the arguments, an object."""
    after: str
    field: str = ""
    """What errors call the schema; empty: its own name."""

    @property
    def texts(self) -> tuple[str, ...]:
        """All of them."""
        return self.before, self.schema_json, self.after, self.field


@dataclass(frozen=True, slots=True)
class Calls:
    """One or several calls of functions."""

    forms: tuple[CallForm, ...]
    separator: str = ""
    max_calls: int = 1

    def violations(self, field: str) -> list[FieldViolation]:
        """Everything wrong with the values themselves."""
        found = []
        if not 1 <= len(self.forms) <= MAX_CALL_FORMS:
            found.append(FieldViolation(f"{field}.forms", f"{len(self.forms)} are not allowed: 1 to {MAX_CALL_FORMS}"))
        if not 1 <= self.max_calls <= MAX_CALLS:
            found.append(FieldViolation(f"{field}.max_calls", f"{self.max_calls} is not allowed: 1 to {MAX_CALLS}"))
        for index, form in enumerate(self.forms):
            sizes = [len(text.encode(errors="replace")) for text in (form.before, form.after, self.separator)]
            if not form.before or max(sizes) > MAX_CALL_TEXT_BYTES:
                allowed = f"1 to {MAX_CALL_TEXT_BYTES} bytes around a call"
                found.append(FieldViolation(f"{field}.forms[{index}]", f"is not allowed: {allowed}"))
            if len(form.field.encode(errors="replace")) > MAX_CALL_TEXT_BYTES:
                description = f"{form.field[:80]!r} and more is not allowed: at most {MAX_CALL_TEXT_BYTES} bytes"
                found.append(FieldViolation(f"{field}.forms[{index}].field", description))
        num_bytes = sum(len(form.schema_json.encode(errors="replace")) for form in self.forms)
        if num_bytes > MAX_BYTES[ConstraintForm.CALLS]:
            allowed = f"at most {MAX_BYTES[ConstraintForm.CALLS]}"
            found.append(FieldViolation(f"{field}.forms", f"{num_bytes} bytes of schemas are too many: {allowed}"))
        return found


@dataclass(frozen=True, slots=True)
class Constraint:
    """What the whole output must look like."""

    form: ConstraintForm
    text: str = ""
    """The schema, the expression or the grammar; empty for the other forms."""
    texts: tuple[str, ...] = ()
    """Of a choice."""
    calls: Calls | None = None
    """Set if and only if that is the form."""
    before: FreeText | None = None
    """What may come before the form; None: nothing."""

    @property
    def all_texts(self) -> Iterator[str]:
        """Every text that is part of it."""
        yield self.text
        yield from self.texts
        if self.calls is not None:
            yield self.calls.separator
            for form in self.calls.forms:
                yield from form.texts

    def violations(self, prefix: str = "constraint") -> list[FieldViolation]:
        """Everything wrong with the values themselves, one entry per field; empty when all is well."""
        field = f"{prefix}.{self.form.value}"
        if self.before is not None and (found := self.before.violations(f"{prefix}.before")):
            return found
        if self.form is ConstraintForm.JSON_OBJECT:
            return []
        if self.calls is not None:
            return self.calls.violations(field)
        if self.form is ConstraintForm.CHOICE:
            field += ".texts"
            if not self.texts or len(self.texts) > MAX_CHOICES:
                description = f"{len(self.texts)} texts are not allowed: 1 to {MAX_CHOICES}"
                return [FieldViolation(field, description)]
            if not all(self.texts):
                return [FieldViolation(field, "an empty text is not allowed: it would end before it begins")]
        elif not self.text:
            return [FieldViolation(field, "is empty; leave it out for free text")]
        return self._text_violations(field)

    def _text_violations(self, field: str) -> list[FieldViolation]:
        try:
            num_bytes = sum(len(text.encode()) for text in (self.text, *self.texts))
        except UnicodeEncodeError:
            return [FieldViolation(field, "is not valid Unicode: it has half of a surrogate pair")]
        if num_bytes > MAX_BYTES[self.form]:
            description = f"{num_bytes} bytes are too many: at most {MAX_BYTES[self.form]}"
            return [FieldViolation(field, description)]
        if "\0" in self.text or any("\0" in text for text in self.texts):
            return [FieldViolation(field, "a NUL character is not allowed")]
        return []


JSON_OBJECT = Constraint(ConstraintForm.JSON_OBJECT)


def json_schema(text: str) -> Constraint:
    """Text that validates against this JSON schema, which is given as JSON."""
    return Constraint(ConstraintForm.JSON_SCHEMA, text)


def regex(expression: str) -> Constraint:
    """Text that matches this regular expression from start to end."""
    return Constraint(ConstraintForm.REGEX, expression)


def choice(*texts: str) -> Constraint:
    """Exactly one of these texts."""
    return Constraint(ConstraintForm.CHOICE, texts=texts)


def ebnf(grammar: str) -> Constraint:
    """Text of this grammar's root rule."""
    return Constraint(ConstraintForm.EBNF, grammar)
