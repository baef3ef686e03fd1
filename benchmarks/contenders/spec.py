"""How a contender is named on a command line: `ours:dtype=bfloat16,window=10`. Knows no server."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

FOLDERS = ("model", "tree")
"""Options that may be paths."""


class Absent(Exception):
    """A contender that cannot run here; the message says why and what to do. It is reported, never dropped."""


@dataclass(frozen=True)
class Spec:
    """One contender: what it is, and its options in their order."""

    kind: str
    options: Mapping[str, str] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """As it was written, but for the folders that a model and a tree are in."""
        shown = ((key, Path(value).name if key in FOLDERS else value) for key, value in self.options.items())
        written = ",".join(f"{key}={value}" for key, value in shown)
        return f"{self.kind}:{written}" if written else self.kind

    def taken(self, **defaults: str) -> dict[str, str]:
        """The options over their defaults. Raises ValueError for one that there is not."""
        unknown = sorted(self.options.keys() - defaults.keys())
        if unknown:
            allowed = ", ".join(defaults) or "none"
            raise ValueError(f"{self.label}: no such option: {', '.join(unknown)}; allowed are {allowed}")
        return {**defaults, **self.options}


def spec_of(text: str) -> Spec:
    """KIND or KIND:KEY=VALUE,... Raises ValueError."""
    kind, _, rest = text.partition(":")
    options: dict[str, str] = {}
    for part in filter(None, rest.split(",")):
        key, equals, value = part.partition("=")
        if not equals or not key or not value:
            raise ValueError(f"{text!r}: options are KEY=VALUE, separated by commas")
        options[key] = value
    return Spec(kind, options)
