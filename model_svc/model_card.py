"""What this tier says of itself: the model's card, the load, and admission for the model as it is loaded now."""

from pathlib import Path

from model_svc.admission import Admission, TokenRequest
from model_svc.engine_client import EngineClient
from model_svc.grammar.compiler import GrammarCompiler
from tokenwire.block_hash import SHARED_SCHEME, TENANT_SCHEME
from tokenwire.embedding_wire import capabilities_to_wire
from tokenwire.fingerprint import template_fingerprint, vocabulary_fingerprint
from tokenwire.v1 import common_pb2

HASH_SCHEMES = {"shared": SHARED_SCHEME, "tenant": TENANT_SCHEME, "off": ""}
"""By the setting `prefix_cache`."""


class TierState:
    """The engine's facts in the words of the wire."""

    def __init__(self, engine: EngineClient, vocabulary: str, chat_template: str, grammars: GrammarCompiler) -> None:
        self._engine = engine
        self.grammars = grammars
        self._fingerprint = common_pb2.Fingerprint(vocabulary=vocabulary, chat_template=chat_template)
        self.draining = False

    @property
    def hash_scheme(self) -> str:
        """How blocks are hashed in cache events; empty: there are none."""
        return HASH_SCHEMES[self._engine.settings.prefix_cache]

    def admission(self) -> Admission:
        """What turns requests into sequences. Raises Unavailable while the engine is down."""
        return Admission(
            self._engine.info, self._fingerprint.vocabulary, self.hash_scheme, self._engine.adapters.check
        )  # fmt: skip

    async def grammar(self, request: TokenRequest) -> str:
        """What a request's constraint is compiled to, "" where it has none. Raises as `check` and `compile` do."""
        found = self.grammars.known(request.options.constraint)
        if found is None:
            self.check(request)
            found = await self.grammars.compile(request.options.constraint)
        return found

    def check(self, request: TokenRequest) -> None:
        """Raise what a request would be refused with now whatever its constraint: before one is compiled in vain."""
        self._engine.admit(self.admission().sequences(request, self._engine.next_id))

    def card(self) -> common_pb2.ModelCard:
        """The model. Raises Unavailable while the engine is down."""
        info = self._engine.info
        return common_pb2.ModelCard(
            name=info.model,
            fingerprint=self._fingerprint,
            max_context_tokens=(
                min(info.max_context_tokens, info.max_step_tokens) if info.whole_sequences else info.max_context_tokens
            ),
            vocab_size=info.vocab_size,
            block_size=0 if info.whole_sequences else info.block_size,
            hash_scheme="" if info.whole_sequences else self.hash_scheme,
            capabilities=capabilities_to_wire(generates=info.generates, embeds=bool(info.embedding_size)),
            embedding_size=info.embedding_size,
            adapters=self._engine.adapters.names,
        )

    def load(self) -> common_pb2.Load:
        """How busy this tier is."""
        load = self._engine.load
        return common_pb2.Load(
            running=load.running,
            queued=self._engine.backlog.num_queued,
            queued_tokens=self._engine.backlog.num_queued_tokens,
            kv_blocks_used=load.kv_blocks_used,
            kv_blocks_total=load.kv_blocks_total,
            max_batch_size=self._engine.max_batch_size,
            step=load.step,
            draining=self.draining,
            paused=load.paused,
            kv_blocks_cached=load.kv_blocks_cached,
        )


def fingerprints_of(folder: Path) -> tuple[str, str]:
    """Vocabulary and chat-template fingerprints of a model folder; empty where it has no such file."""
    tokenizer, template = folder / "tokenizer.json", folder / "chat_template.jinja"
    return (
        vocabulary_fingerprint(tokenizer) if tokenizer.is_file() else "",
        template_fingerprint(template.read_text(encoding="utf-8")) if template.is_file() else "",
    )
