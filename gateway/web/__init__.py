"""gRPC's calls for browsers, on the HTTP port: the Connect protocol and gRPC-Web. Knows neither prompts nor tiers."""
