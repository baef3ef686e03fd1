"""Fuzz every target in turn, each for its share of the time.

    python -m tests.fuzz --seconds 60
    python -m tests.fuzz --seconds 600 token_session constraint

Inputs that broke a promise, took longer than 10 s or more than 2 GiB are written to fuzz/<target>/; each is told on
stderr with how to run it again, and the command ends with 1. New inputs that reach new code are kept beside them in
fuzz/<target>/found and used again by the next run; what is worth keeping for all belongs into tests/fuzz/corpus.
"""

import argparse
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from tests.fuzz.targets import CORPUS, TARGETS

WORDS = CORPUS.parent / "words.dict"
TIMEOUT_S = 10
MAX_RSS_MB = 2048
MAX_BYTES = 4096
NO_ATHERIS = "atheris is not installed here: pip install 'tokenwire[fuzz]', or use `make fuzz`"
OWN_END_S = 120
"""For starting and ending, beyond the time that is fuzzed."""


def fuzz(target: str, seconds: int, into: Path, seed: int = 0) -> list[Path]:
    """Returns the inputs that broke something; RuntimeError where the target did not run. `seed`: 0: by chance."""
    found = into / target / "found"
    found.mkdir(parents=True, exist_ok=True)
    before = set(broken(into / target))
    command = [
        sys.executable, "-m", "tests.fuzz.one", target, str(found), str(CORPUS / target),
        f"-max_total_time={seconds}", f"-timeout={TIMEOUT_S}", f"-rss_limit_mb={MAX_RSS_MB}", f"-max_len={MAX_BYTES}",
        f"-seed={seed}", "-len_control=0", f"-dict={WORDS}", f"-artifact_prefix={into / target}/",
    ]  # fmt: skip
    log = into / target / "log"
    with log.open("wb") as output:
        ended = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, timeout=seconds + OWN_END_S)
    new = sorted(set(broken(into / target)) - before)
    if ended.returncode and not new:
        raise RuntimeError(f"{target} ended with {ended.returncode}: {log.read_text(errors='replace')[-2000:]}")
    return new


def broken(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.name.startswith(("crash-", "timeout-", "oom-", "leak-"))]


def num_runs(log: Path) -> int:
    """How many inputs were tried."""
    return max(map(int, re.findall(r"^#(\d+)\t", log.read_text(errors="replace"), re.MULTILINE)), default=0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", choices=[[], *TARGETS], help="which ones (default: all)")
    parser.add_argument("--seconds", type=int, default=60, help="in all (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="try the same inputs each time (default: others)")
    parser.add_argument("--into", type=Path, default=Path("fuzz"), help="folder for what is found")
    arguments = parser.parse_args()
    if find_spec("atheris") is None:
        parser.error(NO_ATHERIS)
    targets = arguments.targets or list(TARGETS)
    if arguments.seconds < len(targets):
        parser.error(f"--seconds {arguments.seconds} is not allowed: at least one for each of {len(targets)} targets")
    num_broken = 0
    for target in targets:
        paths = fuzz(target, arguments.seconds // len(targets), arguments.into, arguments.seed)
        num_broken += len(paths)
        print(f"{target}: {num_runs(arguments.into / target / 'log')} inputs, {len(paths)} of them broke something")
        for path in paths:
            print(f"broken: python -m tests.fuzz.one {target} {path}", file=sys.stderr)
    return 1 if num_broken else 0


if __name__ == "__main__":
    raise SystemExit(main())
