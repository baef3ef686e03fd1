"""From a token request to sequences: checked against the model, defaults filled in.

Knows what the loaded model allows. Does not know the wire, nor how full the engine is.
"""

import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from model_svc.engine.batch import RunnerInfo
from model_svc.engine.sequence import Sequence
from model_svc.grammar.matching import Matching
from tokenwire.block_hash import cache_root
from tokenwire.embeddings import generates_nothing
from tokenwire.errors import FailedPrecondition, FieldViolation, NotFound, Unsupported
from tokenwire.requests import MAX_CHOICES, GenerationOptions, RequestContext
from tokenwire.sampling import SamplingParams, StopParams, refuse


@dataclass(frozen=True, slots=True)
class TokenRequest:
    """One request in token ids, as plain values."""

    context: RequestContext
    token_ids: list[int]
    options: GenerationOptions
    model: str = ""
    num_generated_tokens: int = 0
    first_choice: int = 0
    """Which of the choices of its request the first of these is."""
    vocabulary: str = ""
    """The caller's vocabulary fingerprint; empty: not checked."""
    cache_salt: str = ""
    """Only requests of equal salt share cached prefixes."""


class Admission:
    """Turns requests for one loaded model into sequences."""

    def __init__(
        self,
        info: RunnerInfo,
        vocabulary: str,
        hash_scheme: str,
        check_adapter: Callable[[str], None],
    ) -> None:
        """`check_adapter` raises NotFound for an adapter that is not loaded."""
        self.info = info
        self.check_adapter = check_adapter
        self.hash_scheme = hash_scheme
        """Whose prefixes may be shared, see `tokenwire.block_hash`; empty: no other request's."""
        self.vocabulary = vocabulary
        """Fingerprint of the served vocabulary; empty when the model has no tokenizer files."""

    def sequences(self, request: TokenRequest, next_id: Callable[[], int], grammar: str = "") -> list[Sequence]:
        """One sequence per choice. `grammar`: what the request's constraint was compiled to; "" where it has none.

        Raises NotFound, FailedPrecondition or InvalidRequest naming what is wrong.
        """
        self.check_model(request.model, request.vocabulary)
        self._check_generates(request)
        adapter = request.options.adapter
        if adapter:
            self.check_adapter(adapter)
        self._check_tokens(request)
        sampling = self._sampling(request.options)
        stop = self._stop(request)
        ids = [next_id() for _ in range(request.options.num_choices)]
        root = cache_root(request.context.tenant, request.cache_salt, self.hash_scheme, adapter)
        return [
            Sequence(
                sequence_id=sequence_id,
                token_ids=list(request.token_ids),
                num_prompt_tokens=len(request.token_ids),
                sampling=sampling,
                stop=stop,
                choice=request.first_choice + index,
                first_choice_id=ids[0],
                num_generated_before=request.num_generated_tokens,
                logprobs=request.options.logprobs,
                prompt_logprobs=request.options.prompt_logprobs,
                adapter=adapter,
                constraint=Matching(grammar) if grammar else None,
                speculation=request.options.speculation,
                cache_root=root if self.hash_scheme else f"{ids[0]}\0{root}",
                priority=request.context.priority,
                tenant=request.context.tenant,
                arrival_s=request.context.arrival_s,
                deadline_s=request.context.deadline_s,
            )
            for index, sequence_id in enumerate(ids)
        ]

    def check_model(self, model: str, vocabulary: str) -> None:
        """Raise NotFound for another model, FailedPrecondition for another vocabulary; empty ones are not checked."""
        if model and model != self.info.model:
            raise NotFound(f"model {model!r:.80} is not served here; {self.info.model!r} is", reason="MODEL_NOT_FOUND")
        if vocabulary and self.vocabulary and vocabulary != self.vocabulary:
            message = f"fingerprint.vocabulary {vocabulary!r} is not this model's, {self.vocabulary!r}"
            raise FailedPrecondition(
                f"{message}: both tiers must use the same tokenizer", reason="FINGERPRINT_MISMATCH"
            )

    def _check_generates(self, request: TokenRequest) -> None:
        if not self.info.generates:
            raise generates_nothing(self.info.model)
        if request.options.stop_strings:
            fields = [FieldViolation("options.stop.stop_strings", "only tiers that see text can obey it")]
            raise Unsupported("options.stop.stop_strings: the model tier sees token ids only", violations=fields)

    def _check_tokens(self, request: TokenRequest) -> None:
        info, num_tokens, earlier = self.info, len(request.token_ids), request.num_generated_tokens
        found: list[FieldViolation] = []
        if num_tokens == 0:
            found.append(FieldViolation("token_ids", "it is empty: at least one token id"))
        elif max(request.token_ids) >= info.vocab_size:
            wrong = next(t for t in request.token_ids if t >= info.vocab_size)
            found.append(FieldViolation("token_ids", f"{wrong} is outside the vocabulary: 0 to {info.vocab_size - 1}"))
        if num_tokens and earlier >= num_tokens:
            found.append(FieldViolation("num_generated_tokens", f"{earlier} of {num_tokens} ids leave no prompt"))
        if request.first_choice + request.options.num_choices > MAX_CHOICES:
            description = f"{request.first_choice} and num_choices after it are more than {MAX_CHOICES}"
            found.append(FieldViolation("first_choice", description))
        if num_tokens >= info.max_context_tokens:
            allowed = f"at most {info.max_context_tokens - 1}, which leaves room for one new token"
            found.append(FieldViolation("token_ids", f"{num_tokens} tokens do not fit the context: {allowed}"))
        refuse(found)

    def _sampling(self, options: GenerationOptions) -> SamplingParams:
        """Every field set: the model's defaults, and a seed drawn when neither client nor tokenizer tier gave one."""
        sampling = options.sampling.with_defaults(self.info.sampling_defaults)
        for name, ids in (
            ("logit_bias", [token for token, _ in sampling.logit_bias]),
            ("allowed_token_ids", sampling.allowed_token_ids),
            ("banned_sequences", [token for sequence in sampling.banned_sequences for token in sequence]),
        ):
            self._check_ids(f"options.sampling.{name}", ids)
        return sampling if sampling.seed is not None else replace(sampling, seed=secrets.randbits(64))

    def _stop(self, request: TokenRequest) -> StopParams:
        info, stop = self.info, request.options.stop
        room = info.max_context_tokens - (len(request.token_ids) - request.num_generated_tokens)
        if stop.max_tokens is not None and stop.max_tokens > room:
            description = (
                f"{stop.max_tokens} new tokens do not fit: the context of {info.max_context_tokens} leaves {room}"
            )
            refuse([FieldViolation("options.stop.max_tokens", description)])
        if stop.max_tokens is not None and stop.max_tokens <= request.num_generated_tokens:
            description = f"{stop.max_tokens} are generated already (num_generated_tokens)"
            refuse([FieldViolation("options.stop.max_tokens", description)])
        if stop.min_tokens > room:
            description = f"{stop.min_tokens} is not allowed: the context of {info.max_context_tokens} leaves {room}"
            refuse([FieldViolation("options.stop.min_tokens", description)])
        self._check_ids("options.stop.stop_token_ids", stop.stop_token_ids)
        ids = stop.stop_token_ids if stop.ignore_eos else (*stop.stop_token_ids, *info.eos_token_ids)
        return StopParams(stop.max_tokens or room, ids, stop.ignore_eos, stop.min_tokens)

    def _check_ids(self, name: str, ids: Iterable[int]) -> None:
        """Raise InvalidRequest for a token id that the model does not have."""
        beyond = next((token for token in ids if token >= self.info.vocab_size), None)
        if beyond is not None:
            description = f"{beyond} is outside the vocabulary: 0 to {self.info.vocab_size - 1}"
            refuse([FieldViolation(name, description)])
