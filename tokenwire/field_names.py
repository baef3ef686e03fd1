"""Errors with their fields under the names of whoever is told. Does not know what the names are."""

from collections.abc import Callable

from tokenwire.errors import FieldViolation, TokenwireError


def with_fields_renamed(error: TokenwireError, name_of: Callable[[str], str]) -> TokenwireError:
    """The same error; each violation's field, and its mention at the start of a description, gets its new name."""
    message, violations = error.message, []
    for violation in error.violations:
        name = name_of(violation.field)
        message = message.replace(f"{violation.field}:", f"{name}:")
        violations.append(FieldViolation(name, violation.description))
    return type(error)(message, reason=error.reason, violations=violations, retry_after_s=error.retry_after_s)
