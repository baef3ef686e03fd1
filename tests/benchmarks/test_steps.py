"""The decode-step benchmark: its tables, what it counts as products, and what it calls loss."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.quality import dequantized, loss, shift_groups
from benchmarks.steps import quality_table, step_table
from benchmarks.steps_program import Products
from model_svc.native.packing import INT4_GROUP, int4_groups


def small_llama() -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    return LlamaForCausalLM(config).eval().requires_grad_(False)


def test_equal_logits_lose_nothing() -> None:
    logits = torch.randn(5, 11)
    assert loss(logits, logits + 3.0) == pytest.approx({"kl": 0.0, "top1": 1.0}, abs=1e-6)


def test_loss_is_the_divergence_of_the_exact_distribution_from_the_other() -> None:
    exact, other = torch.tensor([[0.75, 0.25]]).log(), torch.tensor([[0.25, 0.75]]).log()
    found = loss(exact, other)
    assert found["kl"] == pytest.approx(0.5 * torch.tensor(3.0).log().item(), rel=1e-5)
    assert found["top1"] == 0.0


def test_dequantized_weights_are_within_half_a_step() -> None:
    weight = torch.randn(16, 4 * INT4_GROUP)
    _, scale, _ = int4_groups(weight)
    error = (dequantized(weight) - weight).abs().unflatten(1, (-1, INT4_GROUP))
    assert (error <= 0.5001 * scale[..., None]).all()
    assert torch.allclose(dequantized(dequantized(weight)), dequantized(weight), atol=1e-4)


def test_shifted_groups_change_every_layer_but_the_head() -> None:
    module = small_llama()
    head = module.get_output_embeddings().weight.clone()
    before = module.model.layers[0].mlp.up_proj.weight.clone()
    shift_groups(module)
    assert torch.equal(module.get_output_embeddings().weight, head)
    after = module.model.layers[0].mlp.up_proj.weight
    assert not torch.equal(after, before)
    assert torch.allclose(after, before, atol=0.02)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch was built without oneDNN")
def test_the_products_are_those_of_every_layer_and_the_head() -> None:
    module = small_llama().bfloat16()
    norms = sum(p.numel() for name, p in module.named_parameters() if "norm" in name)
    products = Products(module)
    assert products.num_bytes == 2 * (sum(p.numel() for p in module.parameters()) - norms)
    products.run(2)


def test_tables_have_a_column_per_batch_and_a_row_per_kind() -> None:
    steps = {"floor": {"1": 5.5, "8": 5.5}, "ours": {"1": 10.9, "8": 11.4}}
    assert "| ours  | 10.9    | 11.4    |" in step_table({"steps_ms": steps})
    kinds = {"int4": {"mb": 123.0, "kl": 0.0012, "top1": 0.957}}
    assert "95.7 %" in quality_table({"quality": {"tokens": 9, "kinds": kinds}})
