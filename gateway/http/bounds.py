"""How long the lists and objects of a body may be. Does not know what stands in them.

The length is looked at before what is inside, and the first item that is wrong ends the reading of its list: a body
costs no more than its bytes, however much of it is wrong.
"""

from typing import Any

from pydantic import Field

MAX_MESSAGES = 8192
"""Of a conversation."""
MAX_PARTS = 4096
"""Pieces of one message's content."""
MAX_TOOLS = 256
"""Functions that may be called, and calls that one message holds."""
MAX_DOCUMENTS = 1024
MAX_KEYS = 1024
"""Of an object that is passed on as it is: a schema, arguments of a template. What is inside is not counted."""
MAX_NOTES = 64
"""Keys of an object that is ignored."""


def at_most(most: int) -> Any:
    """Of a list or an object: so many items, read until one is wrong."""
    return Field(max_length=most, fail_fast=True)
