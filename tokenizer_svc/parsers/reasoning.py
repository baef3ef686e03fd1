"""The pairs of tags between which models think, by name.

Sources: the chat templates of Qwen3, QwQ, DeepSeek-R1 and SmolLM3 (think), Magistral (mistral), Seed-OSS (seed) and
Kimi-VL-Thinking (kimi).
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ReasoningTags:
    """Reasoning stands between these."""

    opening: str
    closing: str

    def begun_by(self, prompt: str) -> bool:
        """Whether the prompt ends inside the reasoning: its template wrote the opening tag already."""
        return prompt.rstrip().endswith(self.opening)


REASONING_TAGS = {
    "think": ReasoningTags("<think>", "</think>"),
    "mistral": ReasoningTags("[THINK]", "[/THINK]"),
    "seed": ReasoningTags("<seed:think>", "</seed:think>"),
    "kimi": ReasoningTags("◁think▷", "◁/think▷"),
}
