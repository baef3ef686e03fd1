import pytest
import torch
from torch import Tensor

from model_svc.native.library import why_unavailable

needs_kernels = pytest.mark.skipif(why_unavailable() is not None, reason=f"native kernels: {why_unavailable()}")
DTYPES = [torch.float32, torch.bfloat16]
DTYPE_IDS = ["fp32", "bf16"]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def assert_close(
    actual: Tensor, expected: Tensor, *, bf16: float = 2**-8, fp32: float = 1e-5, of_row: float = 0.05
) -> None:
    """`expected` in float64. Relative to each number plus, for what cancels, to `of_row` of the largest (fp32: all)."""
    assert torch.isfinite(actual).all()
    tolerance, share = (bf16, of_row) if actual.dtype == torch.bfloat16 else (fp32, 1.0)
    size = expected.abs().amax(-1, keepdim=True).clamp(min=1e-30)
    error = ((actual.double() - expected).abs() / (expected.abs() + size * share)).max()
    assert error <= tolerance, f"largest relative error {error:.2e}"
