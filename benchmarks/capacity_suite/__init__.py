"""How much a stack holds at once, and how it takes more than it can serve."""
