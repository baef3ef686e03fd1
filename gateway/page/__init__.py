"""The page at `/` of the HTTP port: a chat playground, and what the tiers are doing now."""
