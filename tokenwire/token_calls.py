"""How much one call to tokenize, detokenize or count may bring. Plain values; does not know the wire."""

from tokenwire.errors import InvalidRequest

MAX_ITEMS = 1024
"""Texts, sequences or conversations of one call: as many as prompts of a call that generates."""


def refuse_items(number: int, field: str, most: int = MAX_ITEMS) -> None:
    """Raise InvalidRequest for more than that. None at all is another's business."""
    if number > most:
        raise InvalidRequest.of(field, f"{number} are not allowed: at most {most} in one call; send the rest in others")
