"""What `transformers` itself makes of a model folder: eager attention, one sequence at a time, nothing paged."""

from typing import NamedTuple

import torch
from transformers import AutoModelForCausalLM

from model_svc.engine.sequence import Sequence
from tests.fakes.step_loop import outputs

TIE = 1e-4
"""Two of `transformers`' logits that are no further apart may come the other way round on a GPU."""


class Greedy(NamedTuple):
    """Tokens of a greedy generation, and how far the likeliest logit was above the second at each."""

    token_ids: list[int]
    gaps: list[float]


class Reference:
    """The model in `folder`, in fp32. Remembers what it has generated."""

    def __init__(self, folder: str, device: str = "cpu") -> None:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
        self.model = model.to(device)
        self._made: dict[tuple[tuple[int, ...], int], Greedy] = {}

    def greedy(self, prompt: list[int], num_outputs: int) -> Greedy:
        """transformers' own `generate`."""
        key = (tuple(prompt), num_outputs)
        if key not in self._made:
            ids = torch.tensor([prompt], device=self.model.device)
            made = self.model.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=num_outputs,
                output_logits=True, return_dict_in_generate=True,
            )  # fmt: skip
            likeliest = torch.cat(made.logits).topk(2).values
            gaps = (likeliest[:, 0] - likeliest[:, 1]).tolist()
            self._made[key] = Greedy(made.sequences[0, len(prompt) :].tolist(), gaps)
        return self._made[key]

    @torch.inference_mode()
    def logprobs(self, token_ids: list[int]) -> torch.Tensor:
        """[n - 1, V]: log-probabilities of what follows each of n tokens but the last, from one plain forward."""
        logits = self.model(input_ids=torch.tensor([token_ids], device=self.model.device), use_cache=False).logits[
            0, :-1
        ]
        return logits.log_softmax(-1)


def check_greedy(sequences: list[Sequence], reference: Reference, num_outputs: int) -> None:
    """Each made so many tokens, those of `transformers`; from a near-tie of its logits on they are not compared."""
    for sequence in sequences:
        made = outputs(sequence)
        wanted = reference.greedy(sequence.token_ids[: sequence.num_prompt_tokens], num_outputs)
        assert len(made) == num_outputs
        differing = next((i for i in range(num_outputs) if made[i] != wanted.token_ids[i]), None)
        assert differing is None or wanted.gaps[differing] < TIE
