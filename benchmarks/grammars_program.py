"""One library's figures, in a process of its own: `python -m benchmarks.grammars_program LIBRARY FOLDER VOCAB SUITE`.

Prints one JSON object. Times are of the processor, of this process, so that other work on the machine matters little.
"""

import importlib
import json
import random
import resource
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.grammar_libraries.cases import CASES

NUM_TOKENS = 200
MOST_RUNS = 5


def measure(name: str, folder: Path, vocab_size: int, suite: Path) -> dict[str, Any]:
    """Import, vocabulary, compile and mask times in ms, and what the suite's schemas come to."""
    began_s = time.process_time()
    module = importlib.import_module(f"benchmarks.grammar_libraries.{name}_library")
    import_ms = (time.process_time() - began_s) * 1000
    torch_loaded = "torch" in sys.modules
    began_s = time.process_time()
    library = module.Library(folder, vocab_size)
    return {
        "import_ms": import_ms,
        "imports_torch": torch_loaded,
        "vocabulary_ms": (time.process_time() - began_s) * 1000,
        "cases": {case.name: measure_case(library, case.form, case.text) for case in CASES},
        "suite": measure_suite(library, suite),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def measure_case(library: Any, form: str, text: str) -> dict[str, Any] | None:
    """Of one form: compile, mask and accept times in ms; None where it is refused."""
    compile_ms = []
    for _ in range(MOST_RUNS):
        began_s = time.process_time()
        matcher = library.compile(form, text)
        compile_ms.append((time.process_time() - began_s) * 1000)
        if matcher is None:
            return None
        if sum(compile_ms) > 3000:
            break
    rng, mask_ms, accept_ms = random.Random(0), [], []
    while len(mask_ms) < NUM_TOKENS:
        began_s = time.perf_counter()
        matcher.mask()
        mask_ms.append((time.perf_counter() - began_s) * 1000)
        tokens = matcher.tokens()
        if not len(tokens):
            matcher.restart()
            continue
        began_s = time.perf_counter()
        matcher.accept(int(rng.choice(tokens)))
        accept_ms.append((time.perf_counter() - began_s) * 1000)
    return {
        "compile_ms": statistics.median(compile_ms),
        "mask_p50_ms": statistics.median(mask_ms),
        "mask_p95_ms": sorted(mask_ms)[int(len(mask_ms) * 0.95)],
        "mask_max_ms": max(mask_ms),
        "accept_p50_ms": statistics.median(accept_ms),
    }


def measure_suite(library: Any, path: Path) -> dict[str, int]:
    """What becomes of the schemas and instances of the JSON Schema Test Suite."""
    found = dict.fromkeys(("schemas", "compiled", "valid_accepted", "valid_missed", "invalid_accepted", "invalid"), 0)
    for group in json.loads(path.read_text()):
        found["schemas"] += 1
        matcher = library.compile("json_schema", json.dumps(group["schema"]))
        if matcher is None:
            continue
        found["compiled"] += 1
        for instance, valid in group["tests"]:
            accepted = library.accepts(matcher, instance)
            found["invalid"] += not valid
            found["invalid_accepted"] += accepted and not valid
            found["valid_accepted"] += accepted and valid
            found["valid_missed"] += valid and not accepted
    return found


if __name__ == "__main__":
    name, folder, vocab_size, suite = sys.argv[1:]
    print(json.dumps(measure(name, Path(folder), int(vocab_size), Path(suite))))
