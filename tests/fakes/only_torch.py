"""A Python in which torch, transformers and pytest are installed with what they require, and nothing else."""

import os
import sys
from importlib.metadata import Distribution, PackageNotFoundError, distribution, packages_distributions
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
INSTALLED = ("torch", "transformers", "triton", "pytest", "pytest-timeout", "setuptools", "pip")
OURS = "tokenwire"
HIDING = """
import sys
from importlib.machinery import PathFinder

class Finder(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in {absent!r} else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Finder
"""


def only_torch(folder: Path) -> dict[str, str]:
    """The environment of such a process, to be run in the repository; `folder` has to outlive it."""
    (folder / "sitecustomize.py").write_text(HIDING.format(absent=absent()))
    return {
        **os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)]), "OMP_NUM_THREADS": "1",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_PLUGINS": "pytest_timeout",
    }  # fmt: skip


def absent() -> list[str]:
    """Top-level modules of everything else."""
    kept = {OURS, *closure(INSTALLED)}
    modules = packages_distributions().items()
    found = [name for name, owners in modules if not kept & {folded(owner) for owner in owners}]
    assert {"grpc", "google", "llguidance"} <= set(found)
    return sorted(set(found) - set(sys.stdlib_module_names))


def closure(names: tuple[str, ...]) -> set[str]:
    """These distributions and those they require, of what is installed."""
    found: set[str] = set()
    waiting = [folded(name) for name in names]
    while waiting:
        name = waiting.pop()
        if name not in found and (installed := installed_as(name)) is not None:
            found.add(name)
            needed = [Requirement(line) for line in installed.requires or ()]
            waiting += [
                folded(each.name) for each in needed if each.marker is None or each.marker.evaluate({"extra": ""})
            ]
    return found


def installed_as(name: str) -> Distribution | None:
    try:
        return distribution(name)
    except PackageNotFoundError:
        return None


def folded(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")
