"""Prints what an image installs before its own code: the dependencies of the package and of the extras named.

    python scripts/requirements.py server gateway

Needs nothing but Python, so that it runs in a bare image.
"""

import sys
import tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
wanted = list(project["dependencies"])
for extra in sys.argv[1:]:
    wanted += project["optional-dependencies"][extra]
print("\n".join(dependency for dependency in wanted if not dependency.startswith("tokenwire[")))
