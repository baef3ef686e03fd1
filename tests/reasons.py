"""The reasons that our code gives the errors it makes, as its source has them."""

import ast
import importlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import gateway.http.errors
import tokenwire.errors
from tokenwire.errors import TokenwireError

ROOT = Path(__file__).parent.parent


def reasons_given(paths: Iterable[Path], classes: tuple[type[TokenwireError], ...] = (TokenwireError,)) -> set[str]:
    """Of errors of these classes. Those that are put together while it runs are left out."""
    return set(_given(paths, classes))


def _given(paths: Iterable[Path], classes: tuple[type[TokenwireError], ...]) -> Iterator[str]:
    for path in paths:
        for call in ast.walk(ast.parse(path.read_text())):
            if not isinstance(call, ast.Call):
                continue
            made = call.func.value if isinstance(call.func, ast.Attribute) else call.func
            kind = _class(made.id) if isinstance(made, ast.Name) else None
            if kind is None or not issubclass(kind, classes):
                continue
            reason = next((each.value for each in call.keywords if each.arg == "reason"), None)
            if reason is None:
                yield kind.default_reason
            elif isinstance(reason, ast.Constant):
                yield str(reason.value)
            elif isinstance(reason, ast.Name):
                module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
                yield str(getattr(importlib.import_module(module), reason.id))


def _class(name: str) -> type[TokenwireError] | None:
    for module in (tokenwire.errors, gateway.http.errors):
        found = getattr(module, name, None)
        if isinstance(found, type) and issubclass(found, TokenwireError):
            return found
    return None
