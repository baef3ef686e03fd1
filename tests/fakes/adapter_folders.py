"""Folders that look like a PEFT adapter, without weights that anybody could use: for the mock engine."""

import json
from pathlib import Path
from typing import Any


def adapter_folder(folder: Path, **config: Any) -> Path:
    folder.mkdir(parents=True)
    values = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], **config}
    (folder / "adapter_config.json").write_text(json.dumps(values))
    (folder / "adapter_model.safetensors").write_bytes(b"")
    return folder
