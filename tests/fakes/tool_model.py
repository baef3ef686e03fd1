"""A model folder whose template knows tools and reasoning, and the tiers over a model that says what it is told."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from tests.fakes.live_gateway import LiveGateway, live_gateway
from tests.fakes.live_tokenizer_tier import LiveTokenizerTier, live_tokenizer_tier
from tests.fakes.model_tier import FakeModelTier, fake_model_tier
from tests.fakes.tokenizers_trained import byte_level_bpe, write_folder
from tokenizer_svc.tokenizer import Tokenizer
from tokenwire.requests import FinishReason

TEMPLATE = """\
{%- if tools %}<|im_start|>system
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}Call them in <tool_call></tool_call>.<|im_end|>
{% endif %}
{%- for d in documents or () %}<|im_start|>document
{{ d | tojson }}<|im_end|>
{% endfor %}
{%- for m in messages %}<|im_start|>{{ m.role }}
{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}
{%- for call in m.tool_calls or () %}<tool_call>{{ call.function | tojson }}</tool_call>{% endfor %}
{%- if m.tool_call_id %} ({{ m.tool_call_id }}){% endif %}<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% if thinking %}<think>
{% endif %}{% endif %}"""
SPECIAL = ("<tool_call>", "</tool_call>", "<think>", "</think>")
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather now",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Zürich"}}\n</tool_call>'


@cache
def tool_folder(parent: Path, special: bool = True) -> Path:
    """`special`: the markers are special tokens; otherwise they are ordinary text."""
    tokenizer = byte_level_bpe()
    if special:
        tokenizer.add_special_tokens([*SPECIAL])
    return write_folder(parent / f"tool-model-{special}", tokenizer, chat_template=TEMPLATE)


@dataclass
class Stack:
    model: FakeModelTier
    tier: LiveTokenizerTier
    live: LiveGateway
    says: str = field(default="")

    def prompt(self, index: int = -1) -> str:
        """What the model was asked, special tokens included."""
        return self.tier.tokenizer.decode(self.model.requests[index].prompt, skip_special_tokens=False)


@asynccontextmanager
async def tool_stack(
    folder: Path, says: str, reason: FinishReason = FinishReason.STOP_TOKEN, hold: bool = False, **settings: Any
) -> AsyncIterator[Stack]:
    """The gateway over the tokenizer tier over a model that answers `says`, one token a frame."""
    tokenizer = Tokenizer.load(folder)
    ids = [*tokenizer.encode(says, add_special_tokens=False).token_ids]
    async with (
        fake_model_tier(reply=lambda _: ids, reason=reason, hold=hold, max_context_tokens=2048) as model,
        live_tokenizer_tier(folder, model, **settings) as tier,
        live_gateway(tier) as live,
    ):
        yield Stack(model, tier, live, says)
