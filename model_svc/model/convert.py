"""GGUF file → ordinary Hugging Face folder: safetensors, config, tokenizer, chat template.

Run as `python -m model_svc convert`. Needs the extra `convert` (gguf, accelerate); serving does not. Writes into an
empty folder and knows nothing of the model store: lock, atomic rename and manifest are the work of `tokenwire.models`.

Three things are put right on the way:
- the tokenizer's splitting rule: GGUF stores only its name (`tokenizer.ggml.pre`), and where transformers does not know
  it, text would be split as for GPT-2 and numbers and blanks would get other tokens than the model was trained on;
- a file that lacks tensors, whose gaps transformers would fill with random values, is refused;
- generation_config keeps what the file states (bos, eos, pad) and nothing made up.
"""

import argparse
import shutil
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

MISSING = [name for name in ("accelerate", "gguf", "safetensors", "torch", "transformers") if find_spec(name) is None]
if not MISSING:
    import gguf
    import numpy as np
    import torch
    import transformers
    from tokenizers import pre_tokenizers
    from transformers.utils import logging as transformers_logging

    hf: Any = transformers  # its annotations are not made for strict checks
    hf_logging: Any = transformers_logging

DTYPES = ("float32", "bfloat16", "float16")

SPLIT_AS_GPT2 = frozenset(("", "default", "gpt-2", "phi-2", "mpt", "olmo", "jais"))
"""Values of `tokenizer.ggml.pre` whose text is split as for GPT-2."""
SPLIT_DIGITS = frozenset(("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"))
"""Values of `tokenizer.ggml.pre` where every digit stands alone and the rest is split as for GPT-2."""


class ConversionError(Exception):
    """A GGUF file that cannot become a folder which serves rightly; the message says why."""


def main(argv: Sequence[str]) -> int:
    """`convert SRC DST [--dtype D]`. Progress goes to stdout as `<percent>% <what>` lines, errors to stderr.

    Returns 0, or 1 after one line that says what is wrong; then nothing is left in DST.
    """
    parser = argparse.ArgumentParser(
        prog="python -m model_svc convert", description="Turn a GGUF file into a model folder."
    )
    parser.add_argument("source", type=Path, help="the .gguf file")
    parser.add_argument("target", type=Path, help="folder to write; must not exist or be empty")
    parser.add_argument(
        "--dtype", choices=DTYPES, default="float32", help="of the weights (default: %(default)s, exact)"
    )
    args = parser.parse_args(argv)
    if MISSING:
        print(f"convert: not installed: {', '.join(MISSING)}; run: pip install 'tokenwire[convert]'", file=sys.stderr)
        return 1
    if not args.source.is_file():
        print(f"convert: {args.source}: no such file", file=sys.stderr)
        return 1
    if args.target.exists() and (not args.target.is_dir() or any(args.target.iterdir())):
        print(f"convert: {args.target}: exists and is not an empty folder", file=sys.stderr)
        return 1
    try:
        convert(args.source, args.target, args.dtype)
    except (ConversionError, ValueError, KeyError, IndexError, OSError, RuntimeError, NotImplementedError) as error:
        shutil.rmtree(args.target, ignore_errors=True)
        print(f"convert: {args.source}: {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


def convert(source: Path, target: Path, dtype: str = "float32") -> None:
    """Write `target` from the GGUF file `source`; raises ConversionError, or what the readers raise."""
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    target.mkdir(parents=True, exist_ok=True)
    report(0, "reading the header")
    fields = gguf.GGUFReader(source).fields
    report(10, "reading the tokenizer")
    tokenizer = load_tokenizer(source, fields)
    report(35, "dequantizing the weights")
    model = load_model(source, getattr(torch, dtype))
    report(90, "writing the folder")
    tokenizer.model_max_length = model.config.max_position_embeddings
    tokenizer.save_pretrained(target)
    model.generation_config = generation_config(model.config)
    model.save_pretrained(target)
    for path in target.iterdir():
        path.chmod(0o644)  # safetensors writes 0600; a tier under another user must be able to read the folder
    report(100, "done")


def report(percent: int, what: str) -> None:
    """One progress line; a parent process reads the percentage."""
    print(f"{percent}% {what}", flush=True)


def load_tokenizer(source: Path, fields: dict[str, Any]) -> Any:
    """The file's tokenizer, splitting text as `tokenizer.ggml.pre` says."""
    tokenizer = hf.AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    if field_text(fields, "tokenizer.ggml.model") == "gpt2":
        correct_split(tokenizer.backend_tokenizer, field_text(fields, "tokenizer.ggml.pre"))
    if tokenizer.eos_token_id is None:
        raise ConversionError("names no end token (tokenizer.ggml.eos_token_id), so generation would never stop")
    for key in ("name_or_path", "is_local", "local_files_only", "gguf_file", "vocab_file"):
        tokenizer.init_kwargs.pop(key, None)
    return tokenizer


def correct_split(backend: Any, name: str) -> None:
    """Give the tokenizer the splitting rule that `tokenizer.ggml.pre` names; mutates `backend`."""
    if name in SPLIT_DIGITS:
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=True)
        backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    elif name not in SPLIT_AS_GPT2 and isinstance(backend.pre_tokenizer, pre_tokenizers.ByteLevel):
        raise ConversionError(
            f"tokenizer.ggml.pre={name!r}: this splitting rule is not known here, and text would get wrong tokens; "
            "use the model's safetensors folder instead"
        )


def field_text(fields: dict[str, Any], key: str) -> str:
    """A text of the GGUF header, "" where absent."""
    return str(fields[key].contents()) if key in fields else ""


def load_model(source: Path, dtype: "torch.dtype") -> Any:
    """The dequantized model as a plain one of its config's class.

    What transformers loads from a GGUF file carries a quantizer and refuses `save_pretrained`.
    """
    loaded, info = hf.AutoModelForCausalLM.from_pretrained(
        source.parent, gguf_file=source.name, dtype=dtype, output_loading_info=True
    )
    tied = set(loaded.all_tied_weights_keys) if loaded.config.tie_word_embeddings else set()
    missing = sorted(set(info["missing_keys"]) - tied)
    if missing:
        raise ConversionError(f"lacks {len(missing)} tensors of its architecture, first {missing[0]}")
    if info["unexpected_keys"]:
        raise ConversionError(f"has tensors its architecture does not use: {sorted(info['unexpected_keys'])[:3]}")
    config = plain_config(loaded.config, dtype)
    with torch.device("meta"):
        plain = type(loaded)(config)
    plain.load_state_dict(loaded.state_dict(), assign=True)
    plain.tie_weights()
    return plain


def plain_config(config: Any, dtype: "torch.dtype") -> Any:
    """The config without traces of GGUF; numbers that were stored as float32 get their shortest spelling (1e-05)."""
    values = config.to_dict()
    for key in ("quantization_config", "_name_or_path", "_model_name_or_path", "transformers_version", "unk_token_id"):
        values.pop(key, None)
    values = {key: shortest(value) if isinstance(value, float) else value for key, value in values.items()}
    return type(config)(**{**values, "dtype": dtype})


def shortest(value: float) -> float:
    """The shortest decimal that is the same float32: 9.999999747378752e-06 → 1e-05."""
    return float(str(np.float32(value))) if float(np.float32(value)) == value else value


def generation_config(config: Any) -> Any:
    """Only the special tokens that the file states; sampling defaults are not in a GGUF file."""
    ids = {key: getattr(config, key, None) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return hf.GenerationConfig(**{key: value for key, value in ids.items() if value is not None})
