"""How a tier finds the tiers below it, leaves out those that fail, and bounds what it tries again. Plain values."""
