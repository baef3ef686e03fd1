"""From a model's raw text to content, reasoning and tool calls, piece by piece. Knows no wire, tokens or requests."""
