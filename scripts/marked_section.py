"""Replaces what stands between two marks of a page."""


def with_section(page: str, begin: str, end: str, content: str) -> str:
    """The page with `content` between its two marks, each of which stands on a line of its own exactly once."""
    before, rest = page.split(begin)
    _, after = rest.split(end)
    return f"{before}{begin}\n{content}{end}{after}"
