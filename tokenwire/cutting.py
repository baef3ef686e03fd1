"""Texts that others chose, kept short wherever they are told: in logs, in spans and in errors. Does not know which."""

MAX_TOLD_BYTES = 1024
"""Of one text."""


def cut(text: str, max_bytes: int = MAX_TOLD_BYTES) -> str:
    """The text where it is no longer than that in UTF-8, else its beginning and how long it was."""
    if len(text) <= max_bytes // 4:
        return text
    num_bytes = len(text) if text.isascii() else len(text.encode(errors="replace"))
    if num_bytes <= max_bytes:
        return text
    end = f"… ({num_bytes} bytes)"
    # At most so many characters have room: what is behind them is not looked at once more.
    kept = text[:max_bytes].encode(errors="replace")[: max_bytes - len(end.encode())]
    return kept.decode(errors="ignore") + end
