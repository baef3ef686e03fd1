"""Whether a prompt and what is asked of it fit into the context, and how it is cut when the client allows that.

Pure arithmetic on counts; knows neither text nor where the limit comes from.
"""

from tokenwire.errors import FieldViolation, InvalidRequest


def fit_prompt(token_ids: list[int], *, max_tokens: int | None, truncate: bool, max_context_tokens: int) -> list[int]:
    """The prompt that is sent on: the same, or with `truncate` its end, leaving room for `max_tokens` (or for 1).

    `max_context_tokens` 0: not known, not checked. Raises InvalidRequest naming the field, its value and what is
    allowed.
    """
    if not token_ids:
        raise _invalid("input", "the prompt is empty: at least one token is needed")
    if not max_context_tokens:
        return token_ids
    wanted = 1 if max_tokens is None else max_tokens
    if wanted >= max_context_tokens:
        raise _invalid(
            "options.stop.max_tokens",
            f"{wanted} is not allowed: the context holds {max_context_tokens} tokens, the prompt's included",
        )
    room = max_context_tokens - wanted
    if len(token_ids) <= room:
        return token_ids
    if truncate:
        return token_ids[len(token_ids) - room :]
    if max_tokens is not None and len(token_ids) < max_context_tokens:
        raise _invalid(
            "options.stop.max_tokens",
            f"{max_tokens} is not allowed: after a prompt of {len(token_ids)} tokens the context of "
            f"{max_context_tokens} holds at most {max_context_tokens - len(token_ids)} more",
        )
    raise _invalid(
        "input",
        f"the prompt has {len(token_ids)} tokens, the context holds {max_context_tokens} with at least one for the "
        "output: shorten it or set truncate",
    )


def _invalid(field: str, description: str) -> InvalidRequest:
    return InvalidRequest(f"{field}: {description}", violations=[FieldViolation(field, description)])
