"""What of a model's folder a tokenizer is made of: all that the tokenizer tier reads, and gives to its clients.

Looks at names alone. Imports neither `tokenizers` nor a tier.
"""

from pathlib import Path

from tokenwire.errors import FailedPrecondition

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "additional_chat_templates/tool_use.jinja",
)
"""What a client needs to tokenize by itself."""
SLOW_FILES = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "vocab.json", "vocab.txt", "tekken.json")
"""What folders have whose tokenizer was never converted."""


def check_tokenizer(folder: Path) -> None:
    """Raise FailedPrecondition unless the tokenizer's own file is there, and no file is a link out of the folder."""
    check_links(folder)
    if (folder / "tokenizer.json").is_file():
        return
    command = f"AutoTokenizer.from_pretrained({str(folder)!r}).save_pretrained({str(folder)!r})"
    for name in SLOW_FILES:
        if (folder / name).is_file():
            raise FailedPrecondition(
                f"{folder} has {name} and no tokenizer.json; convert it once with transformers (and sentencepiece or "
                f"tiktoken, as it asks): {command}",
                reason="TOKENIZER_NOT_CONVERTED",
            )
    hint = gguf_hint(folder) or f"write one with transformers: {command}"
    raise FailedPrecondition(f"{folder}: no tokenizer.json; {hint}", reason="MODEL_INCOMPLETE")


def check_links(folder: Path) -> None:
    """Raise FailedPrecondition for a file that is a link out of the folder, other than weights.

    A tokenizer's files are given to clients, and templates are shown to them. What the hub's client keeps, links to the
    files of its cache, is in order.
    """
    own = folder.resolve()
    roots = [own, own.parent.parent / "blobs"] if own.parent.name == "snapshots" else [own]
    for path in (*folder.iterdir(), *folder.glob("additional_chat_templates/*")):
        if not path.is_symlink() or path.suffix == ".safetensors":
            continue
        if not any(path.resolve().is_relative_to(root) for root in roots):
            raise FailedPrecondition(
                f"{path}: a link out of the folder, which might give clients any file; copy what it leads to",
                reason="MODEL_DAMAGED",
            )


def gguf_hint(folder: Path) -> str:
    """What to say where a folder has a GGUF file in place of what is missing; empty where it has none."""
    found = sorted(folder.glob("*.gguf"))
    return f"name the file instead: {found[0]}" if found else ""
