"""Carries what attention needs besides its tensors into the layers of one model, for one forward pass at a time.

`transformers` would hand keyword arguments of `forward` down to attention, but not every model does (StableLM and
Nemotron drop them on the way). So each module of a loaded model holds the model's own `Handover`, and attention, which
is called with its module, finds the pass's content there. Nothing is global, and two models never meet.
Does not know what it carries.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


class Handover:
    """What `carrying` was given, while it lasts. One pass at a time, so not for several threads."""

    __slots__ = ("_content",)

    def __init__(self, model: nn.Module) -> None:
        """Make every module of `model` hold this."""
        self._content: object | None = None
        for module in model.modules():
            module.tokenwire_handover = self  # type: ignore[assignment]

    @contextmanager
    def carrying(self, content: object) -> Iterator[None]:
        """Let attention find `content` for as long as the block runs; nothing is kept afterwards."""
        self._content = content
        try:
            yield
        finally:
            self._content = None


def handed_to(module: nn.Module) -> Any:
    """What is carried to `module` in this pass.

    Raises RuntimeError outside of a pass, and for a module that is not part of a loaded model.
    """
    handover = getattr(module, "tokenwire_handover", None)
    content = handover._content if isinstance(handover, Handover) else None
    if content is None:
        raise RuntimeError(f"attention of {type(module).__name__} was called outside of its model's forward pass")
    return content
