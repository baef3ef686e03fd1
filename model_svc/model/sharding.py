"""Splits a loaded model among ranks by the plan that `transformers` has for its architecture.

The plan names modules and weights and how each is split (`PreTrainedModel.tp_plan`); splitting is done here, on the
loaded module, so that afterwards every weight is an ordinary tensor of its local shape (why: docs/decisions/0007).
Embeddings stay whole on every rank: looking up needs no exchange then. The result is compared with the whole model.
"""

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, pad

from model_svc.model.agreement import EAGER_TOLERANCE, difference
from model_svc.model.ranks import Ranks
from tokenwire.errors import FailedPrecondition

NUM_TRIAL_TOKENS = 8

KEPT_WHOLE = frozenset({"embedding_rowwise", "embedding_colwise", "replicated_with_grad_allreduce", "mla_kv_a_proj",
                        "replicate"})  # fmt: skip
"""Styles under which a weight is whole on every rank: for gradients only, or left so on purpose (embeddings)."""


def refused(detail: str) -> FailedPrecondition:
    """The error for a model that cannot be split as asked."""
    return FailedPrecondition(f"tensor_parallel: {detail}", reason="TENSOR_PARALLEL")


def check_heads(config: Any, size: int) -> None:
    """Raise FailedPrecondition unless the heads of `config` can be dealt out evenly."""
    text = config.get_text_config()
    heads = int(getattr(text, "num_attention_heads", 0) or 0)
    kv_heads = int(getattr(text, "num_key_value_heads", 0) or heads)
    for name, number in (("key-value", kv_heads), ("attention", heads)):
        if not number or number % size:
            raise refused(f"{size} does not divide the model's {number} {name} heads")


def shard(module: Any, ranks: Ranks) -> None:
    """Leave this rank its part of the weights, on its device. Raises FailedPrecondition when that cannot be done.

    The leader compares the ranks' joint logits with those that the whole model gave before.
    """
    rules = rules_of(module)
    wanted = trial(module) if ranks.leads else None
    split(module, rules, ranks)
    module.requires_grad_(False).to(ranks.device)
    try:
        found = trial(module)
    except (RuntimeError, ValueError) as error:
        raise refused(f"{type(module).__name__} does not run split by its plan: {error}") from error
    if wanted is not None:
        far, allowed = difference(found.cpu(), wanted), EAGER_TOLERANCE[module.dtype]
        if not far <= allowed:
            raise refused(
                f"{type(module).__name__} split by its plan differs from the whole by {far:.2g}, over {allowed:.2g}"
            )


@torch.inference_mode()
def trial(module: Any) -> Tensor:
    """Logits [NUM_TRIAL_TOKENS, V] by the model's own eager attention."""
    ours = module.config._attn_implementation
    module.set_attn_implementation("eager")
    try:
        token_ids = (
            torch.arange(NUM_TRIAL_TOKENS, device=module.device)[None] % module.config.get_text_config().vocab_size
        )
        logits: Tensor = module(input_ids=token_ids, use_cache=False, return_dict=True).logits[0]
    finally:
        module.set_attn_implementation(ours)
    return logits.float()


def rules_of(module: Any) -> list[tuple[re.Pattern[str], str]]:
    """The plan as patterns of full names and styles. Raises FailedPrecondition where it splits no layer."""
    plan: dict[str, str] = dict(getattr(module, "tp_plan", None) or {})
    rules = [
        (re.compile(re.escape(name).replace(r"\*", r"\d+")), style)
        for name, style in plan.items()
        if style not in KEPT_WHOLE
    ]
    in_layers = [name for name, _ in module.named_modules() if re.search(r"\.\d+\.", name) and style_of(name, rules)]
    if not in_layers:
        raise refused(f"transformers has no plan to split the layers of {type(module).__name__}")
    unknown = sorted({style for _, style in rules} - {*LINEAR_STYLES, *WEIGHT_STYLES, *OUTPUT_STYLES})
    if unknown:
        raise refused(f"the plan of {type(module).__name__} asks for {', '.join(unknown)}, which is not built")
    return rules


def style_of(name: str, rules: list[tuple[re.Pattern[str], str]]) -> str | None:
    """How the module or weight of this name is split; None: not at all."""
    return next((style for pattern, style in rules if pattern.fullmatch(name)), None)


def split(module: Any, rules: list[tuple[re.Pattern[str], str]], ranks: Ranks) -> None:
    """Apply the rules: linear modules are exchanged, bare weights cut, outputs added up."""
    for name, child in list(module.named_modules()):
        style = style_of(name, rules)
        parent, _, attribute = name.rpartition(".")
        if style in OUTPUT_STYLES:
            add_up_output(child, ranks)
        elif isinstance(child, nn.Linear) and style in LINEAR_STYLES:
            setattr(module.get_submodule(parent), attribute, LINEAR_STYLES[style](child, ranks))
        elif style is not None:
            raise refused(f"{name} is a {type(child).__name__}, which cannot be split as {style}")
        for weight_name, weight in list(child.named_parameters(recurse=False)):
            full_name = f"{name}.{weight_name}"
            if (own := style_of(full_name, rules)) is None:
                continue
            if own not in WEIGHT_STYLES or weight.dim() != 3:
                raise refused(f"{full_name} with {weight.dim()} dimensions cannot be split as {own}")
            setattr(child, weight_name, frozen(WEIGHT_STYLES[own](weight, ranks)))


def frozen(tensor: Tensor) -> nn.Parameter:
    """The part as a weight with memory of its own, so that the whole can go."""
    return nn.Parameter(tensor.detach().clone(), requires_grad=False)


def rows(weight: Tensor, ranks: Ranks) -> Tensor:
    """One rank's outputs of a weight [..., out, in], or of a bias [out]."""
    dim = max(0, weight.dim() - 2)
    return weight.narrow(dim, *_run(ranks.span(weight.shape[dim])))


def packed_rows(weight: Tensor, ranks: Ranks) -> Tensor:
    """The same of two weights that lie one after the other, as gate and up do."""
    dim = max(0, weight.dim() - 2)
    return torch.cat([rows(half, ranks) for half in weight.chunk(2, dim)], dim)


def columns(weight: Tensor, ranks: Ranks) -> Tensor:
    """One rank's inputs of a weight [..., out, in]."""
    return weight.narrow(-1, *_run(ranks.span(weight.shape[-1])))


def _run(span: slice) -> tuple[int, int]:
    return span.start, span.stop - span.start


def column_parallel(whole: nn.Linear, ranks: Ranks) -> nn.Module:
    """Each rank computes some outputs and goes on with them alone: an ordinary linear layer."""
    return _linear(rows(whole.weight, ranks), None if whole.bias is None else rows(whole.bias, ranks))


def packed_column_parallel(whole: nn.Linear, ranks: Ranks) -> nn.Module:
    """The same for two layers in one."""
    return _linear(packed_rows(whole.weight, ranks), None if whole.bias is None else packed_rows(whole.bias, ranks))


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    part = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    part.weight = frozen(weight)
    if bias is not None:
        part.bias = frozen(bias)
    return part


class RowParallel(nn.Module):
    """Each rank computes with some inputs, all that it has or its part of them; the sum is every rank's output."""

    def __init__(self, whole: nn.Linear, ranks: Ranks, *, input_is_whole: bool = False) -> None:
        super().__init__()
        self.ranks = ranks
        self.input_span = ranks.span(whole.in_features) if input_is_whole else slice(None)
        self.weight = frozen(columns(whole.weight, ranks))
        self.bias = None if whole.bias is None else frozen(whole.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., in or this rank's part of it] -> [..., out]."""
        output = self.ranks.add(linear(hidden[..., self.input_span], self.weight))
        return output if self.bias is None else output + self.bias


class GatheredColumnParallel(nn.Module):
    """Each rank computes some outputs; every rank gets them all."""

    def __init__(self, whole: nn.Linear, ranks: Ranks) -> None:
        super().__init__()
        self.ranks = ranks
        self.out_features = whole.out_features
        missing = ranks.share(whole.out_features) - rows(whole.weight, ranks).shape[0]
        self.weight = frozen(pad(rows(whole.weight, ranks), (0, 0, 0, missing)))
        self.bias = None if whole.bias is None else frozen(pad(rows(whole.bias, ranks), (0, missing)))

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        return self.ranks.gather(linear(hidden, self.weight, self.bias))[..., : self.out_features]


def add_up_output(module: nn.Module, ranks: Ranks) -> None:
    """Let `module`, which computes with parts, give every rank the sum."""
    alone = module.forward

    def forward(*args: Any, **kwargs: Any) -> Tensor:
        return ranks.add(alone(*args, **kwargs).contiguous())

    module.forward = forward


def row_parallel(whole: nn.Linear, ranks: Ranks) -> nn.Module:
    """See `RowParallel`."""
    return RowParallel(whole, ranks)


def row_parallel_of_whole(whole: nn.Linear, ranks: Ranks) -> nn.Module:
    """See `RowParallel`, for an input that every rank has whole."""
    return RowParallel(whole, ranks, input_is_whole=True)


LINEAR_STYLES: dict[str | None, Callable[[nn.Linear, Ranks], nn.Module]] = {
    "colwise": column_parallel,
    "packed_colwise": packed_column_parallel,
    "rowwise": row_parallel,
    "rowwise_rep": row_parallel_of_whole,
    "rowwise_split_input": row_parallel_of_whole,
    "colwise_rep": GatheredColumnParallel,
    "colwise_gather_output": GatheredColumnParallel,
}
"""What becomes of a linear module, by the plan's word."""
WEIGHT_STYLES: dict[str, Callable[[Tensor, Ranks], Tensor]] = {
    "colwise": rows, "packed_colwise": packed_rows, "rowwise": columns
}  # fmt: skip
"""One rank's part of a bare weight of experts, [E, out, in]."""
OUTPUT_STYLES = frozenset({"moe_tp_experts", "all_reduce"})
"""Modules whose output is a part of the sum."""
