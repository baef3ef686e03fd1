"""How many things one call may bring, and how large a text. Plain values; does not know the wire."""

from tokenwire.errors import InvalidRequest

MAX_ITEMS = 1024
"""Texts, sequences or conversations of one call: as many as prompts of a call that generates."""

MAX_TEXT_CHARS = 4 * 2**20
"""Of a text that is encoded, whatever becomes of it: encoding cannot be stopped midway."""


def refuse_text_size(text: str, field: str) -> None:
    """Raise InvalidRequest for a text of more than `MAX_TEXT_CHARS`."""
    if len(text) > MAX_TEXT_CHARS:
        raise InvalidRequest.of(field, f"a text of {len(text)} characters is not allowed: at most {MAX_TEXT_CHARS}")


def refuse_count(number: int, noun: str, field: str, most: int) -> None:
    """Raise InvalidRequest for none, and for more than `most`. `noun`: what they are, in the plural."""
    if not 1 <= number <= most:
        raise InvalidRequest.of(field, f"{number} {noun} are not allowed: from 1 to {most} in one call")


def refuse_items(number: int, field: str, most: int = MAX_ITEMS) -> None:
    """Raise InvalidRequest for more than that. None at all is another's business."""
    if number > most:
        raise InvalidRequest.of(field, f"{number} are not allowed: at most {most} in one call; send the rest in others")


def refuse_counted(num_texts: int, num_conversations: int, most: int = MAX_ITEMS) -> None:
    """`refuse_items` for a call that counts: texts and conversations together, under the name of what is more."""
    field = "texts" if num_texts > num_conversations else "conversations"
    refuse_items(num_texts + num_conversations, field, most)
