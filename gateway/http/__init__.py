"""The HTTP façade: OpenAI's API, /generate, health. Knows JSON and server-sent events; does not know gRPC."""
