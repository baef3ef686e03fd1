import numpy as np
import torch

from model_svc.runner.grammar_masks import forbid, unpacked


def test_what_the_bits_do_not_allow_becomes_impossible_and_nothing_else_changes() -> None:
    rng = np.random.default_rng(0)
    for width in (1, 7, 8, 99, 250):
        scores = torch.randn(5, width)
        before = scores.clone()
        bits = rng.integers(0, 256, (2, -(-(width + 1) // 32) * 4), dtype=np.uint8)
        rows = torch.tensor([3, 0])
        forbid(scores, rows, torch.from_numpy(bits))
        for row, its_bits in zip(rows.tolist(), bits, strict=True):
            for token in range(width):
                allowed = bool(its_bits[token // 8] >> token % 8 & 1)
                assert scores[row, token] == (before[row, token] if allowed else -torch.inf)
        for row in (1, 2, 4):
            assert torch.equal(scores[row], before[row])
        assert torch.equal(unpacked(torch.from_numpy(bits), width), torch.isfinite(scores[rows]))
