"""`python -m model_svc places`: how many GPUs and cores model tiers could use here, as JSON."""

import json
from collections.abc import Sequence

import torch

from model_svc.host import usable_cores


def main(argv: Sequence[str]) -> int:
    """Print `{"gpus": 2, "cores": 16}`."""
    del argv
    print(json.dumps({"gpus": torch.cuda.device_count(), "cores": usable_cores()}))
    return 0
