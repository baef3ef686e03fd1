"""The load-time probe of encoders: refuses a model that packed execution would serve wrongly.

Sequences of different length, one of them as long as the model allows, run packed together and must give what each
gives alone through transformers' own eager attention; then one is swapped for another, and the rest must not change.
Attention must be called once a layer.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from model_svc.model.agreement import EAGER_TOLERANCE, difference
from model_svc.model.discovery import Unservable
from model_svc.model.encoder import Encoder, packed_row
from model_svc.model.encoder_attention import ENCODER_ATTENTION, EncoderBackend, Packed
from model_svc.model.probe import NEIGHBOUR_TOLERANCE
from tokenwire.errors import FailedPrecondition

SHORT_TOKENS = 9
LONG_TOKENS = 24


@dataclass(slots=True)
class CountingBackend:
    """A backend that counts its calls."""

    backend: EncoderBackend
    name: str = "counting"
    num_calls: int = 0

    def attend(self, query: Tensor, key: Tensor, value: Tensor, packed: Packed, scale: float | None) -> Tensor:
        """See `EncoderBackend.attend`."""
        self.num_calls += 1
        return self.backend.attend(query, key, value, packed, scale)


@torch.inference_mode()
def probe_encoder(model: Encoder, backend: EncoderBackend, max_tokens: int) -> None:
    """Let the encoder show that it is served rightly up to `max_tokens`.

    Raises FailedPrecondition with reason MODEL_UNSUPPORTED, naming the reason. Leaves the model as it was.
    """
    try:
        _try(model, backend, max_tokens)
    except Exception as error:  # whatever a model's unknown code raises
        reason = error if isinstance(error, Unservable) else f"a trial run failed: {type(error).__name__}: {error}"
        raise FailedPrecondition(
            f"model: {type(model.module).__name__} cannot be served: {reason}", reason="MODEL_UNSUPPORTED"
        ) from error


def _try(model: Encoder, backend: EncoderBackend, max_tokens: int) -> None:
    random = torch.Generator().manual_seed(0)
    lengths = sorted(min(length, max_tokens) for length in (1, SHORT_TOKENS, SHORT_TOKENS, LONG_TOKENS, max_tokens))
    sequences = [_tokens(model, length, random) for length in lengths]
    counting = CountingBackend(backend)
    together = _packed(model, counting, sequences)
    if counting.num_calls != model.num_layers:
        raise Unservable(f"{counting.num_calls} calls of attention in {model.num_layers} layers")
    other = [sequences[0], _tokens(model, lengths[1], random), *sequences[2:]]
    beside_another = _packed(model, backend, other)
    for index, (found, sequence) in enumerate(zip(together, sequences, strict=True)):
        if index != 1 and not difference(found, beside_another[index]) <= NEIGHBOUR_TOLERANCE[model.dtype]:
            raise Unservable("a sequence's result changes with the tokens packed beside it")
        if not (differs := difference(found, _alone(model, sequence))) <= EAGER_TOLERANCE[model.dtype]:
            raise Unservable(
                f"a packed sequence of {len(sequence)} tokens differs from transformers' eager attention by "
                f"{differs:.2g}, over the {EAGER_TOLERANCE[model.dtype]:.2g} that {model.dtype} explains"
            )


def _packed(model: Encoder, backend: EncoderBackend, sequences: list[Tensor]) -> list[Tensor]:
    lengths = [len(sequence) for sequence in sequences]
    positions, packed = packed_row(lengths, model.device)
    hidden = model.hidden(torch.cat(sequences).to(model.device), positions, packed, backend)
    return list(torch.split(hidden.float(), lengths))


def _tokens(model: Encoder, length: int, random: torch.Generator) -> Tensor:
    """[length] int64: none of them padding, which some models give no position of its own."""
    token_ids = torch.randint(model.vocab_size, (length,), generator=random)
    padding = model.module.config.pad_token_id
    return (
        token_ids if padding is None else torch.where(token_ids == padding, (padding + 1) % model.vocab_size, token_ids)
    )


def _alone(model: Encoder, sequence: Tensor) -> Tensor:
    """[n, hidden_size]: by transformers itself, which is left to find positions and token types."""
    model.module.set_attn_implementation("eager")
    try:
        output = model.module(input_ids=sequence[None].to(model.device))
    finally:
        model.module.set_attn_implementation(ENCODER_ATTENTION)
    hidden: Tensor = output.last_hidden_state[0]
    return hidden.float()
