"""The frontend benchmark: what the tiers above the model cost per token, beside a gateway of another make."""
