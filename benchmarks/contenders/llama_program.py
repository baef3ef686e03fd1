"""Run by a peer's interpreter: `python llama_program.py FILE.gguf THREADS`. Imports nothing of this repository.

Reads one JSON request a line, as benchmarks/loadgen/pipe.py writes it, generates greedily past every end-of-sequence
id, and answers with the times at which the tokens were there.
"""

import json
import sys
import time
from importlib import import_module
from typing import Any


def quantize(source: str, target: str, kind: str) -> None:
    """Write the weights in another format."""
    llama_cpp: Any = import_module("llama_cpp")  # only the peer's environment has it

    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = {"Q4_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0, "F16": llama_cpp.LLAMA_FTYPE_MOSTLY_F16}[kind]
    parameters.allow_requantize = True
    if llama_cpp.llama_model_quantize(source.encode(), target.encode(), parameters):
        raise SystemExit(f"{source} could not be written as {kind}")


def serve(path: str, threads: int) -> None:
    """Answer until the input ends."""
    llama_cpp: Any = import_module("llama_cpp")

    model = llama_cpp.Llama(
        model_path=path, n_ctx=2048, n_threads=threads, n_threads_batch=threads, verbose=False, logits_all=False
    )
    for line in sys.stdin:
        try:
            answer = generate(model, json.loads(line))
        except Exception as error:  # whatever it is, the other side counts it as a failure
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


def generate(model: Any, request: dict[str, Any]) -> dict[str, Any]:
    """One answer."""
    began_s = time.perf_counter()
    prompt = request["prompt"]
    tokens = model.tokenize(prompt.encode(), add_bos=False) if isinstance(prompt, str) else prompt
    made: list[int] = []
    piece_s: list[float] = []
    for token in model.generate(tokens, temp=0.0, top_k=1, repeat_penalty=1.0, reset=True):
        made.append(token)
        piece_s.append(time.perf_counter() - began_s)
        if len(made) == request["max_tokens"]:
            break
    text = model.detokenize(made).decode(errors="replace")
    return {"piece_s": piece_s, "prompt_tokens": len(tokens), "completion_tokens": len(made), "text": text}


if __name__ == "__main__":
    if sys.argv[1] == "quantize":
        quantize(*sys.argv[2:])
    else:
        serve(sys.argv[1], int(sys.argv[2]))
