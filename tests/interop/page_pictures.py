"""Takes the pictures of docs/images anew, with `make up` running: `python -m tests.interop.page_pictures URL`.

Wants a gateway that has nothing else to do, and asks nobody who calls.
"""

import shutil
import subprocess
import sys
from pathlib import Path

from PIL import Image

from tests.interop.environments import node_with
from tests.interop.page_driver import PACKAGES

PROGRAM = Path(__file__).parent / "programs" / "page_pictures.cjs"
NUM_COLOURS = 96
IMAGES = Path(__file__).parents[2] / "docs" / "images"


def main() -> None:
    node, folder = node_with("page", *PACKAGES)
    IMAGES.mkdir(exist_ok=True)
    subprocess.run([node, PROGRAM, folder, sys.argv[1], shutil.which("chromium") or "", IMAGES], check=True)
    for path in IMAGES.glob("page*.png"):
        with Image.open(path) as image:
            image.convert("RGB").quantize(NUM_COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)


if __name__ == "__main__":
    main()
