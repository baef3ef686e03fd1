"""Who calls the gateway, by key, token or certificate, and what they may."""
