"""A catalog model small enough for tests, and stand-ins for pip and the converter that count their calls."""

import hashlib
import json
import sys
import zipfile
from pathlib import Path

from tokenwire.model_catalog import CatalogModel, WheelSource
from tokenwire.models import ModelStore

GGUF_CONTENT = b"GGUF, or so it says"
CONVERTER = """
import sys, time
from pathlib import Path
sys.path.insert(0, {root!r})
from tests.fakes.model_folder import write_folder
source, target, _, dtype = sys.argv[1:]
calls = Path(__file__).with_name("converted")
with calls.open("a") as file:
    file.write(dtype + "\\n")
hold = Path(__file__).with_name("hold")
Path(target).mkdir()
(Path(target) / "config.json").touch()
while hold.exists():
    time.sleep(0.01)
if Path(__file__).with_name("break").exists():
    print("convert: it is broken", file=sys.stderr)
    sys.exit(1)
write_folder(Path(target))
print("100% done")
"""
PIP = """
import shutil, sys
from pathlib import Path
here = Path(__file__).parent
with (here / "downloaded").open("a") as file:
    file.write(sys.argv[-1] + "\\n")
if (here / "offline").exists():
    print("ERROR: Could not find a version that satisfies the requirement")
    sys.exit(1)
shutil.copy(here / "tiny-1.0-py3-none-any.whl", sys.argv[sys.argv.index("--dest") + 1])
"""


class Bench:
    """A store in a folder of its own, with the stand-ins beside it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        wheel = folder / "tiny-1.0-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr(zipfile.ZipInfo("tiny/tiny.gguf"), GGUF_CONTENT)
        source = WheelSource(
            "tiny", "1.0", hashlib.sha256(wheel.read_bytes()).hexdigest(), wheel.stat().st_size, "tiny/tiny.gguf"
        )
        self.wheel = wheel
        self.catalog = {"tiny-instruct": CatalogModel("tiny-instruct", source, 1000, "Apache-2.0", "")}
        (folder / "converter.py").write_text(CONVERTER.format(root=str(Path(__file__).parents[2])))
        (folder / "pip.py").write_text(PIP)
        self.phases: list[str] = []
        self.store = self.new_store()
        self.target = self.store.root / "tiny-instruct"

    def new_store(self) -> ModelStore:
        return ModelStore(
            self.folder / "store",
            progress=lambda what, fraction: self.phases.append(what),
            catalog=self.catalog,
            convert_command=(sys.executable, str(self.folder / "converter.py")),
            pip_command=(sys.executable, str(self.folder / "pip.py")),
        )

    def calls(self, name: str) -> list[str]:
        """Arguments of the calls to "downloaded" (pip) or "converted" so far."""
        path = self.folder / name
        return path.read_text().splitlines() if path.exists() else []

    def left_over(self) -> list[str]:
        """What the store holds besides complete folders and locks."""
        return [path.name for path in self.store.root.iterdir() if path.name.endswith(".tmp")]


def edit_manifest(folder: Path, **values: object) -> None:
    path = folder / "tokenwire.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
