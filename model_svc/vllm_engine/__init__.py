"""`vllm.grpc.engine.VllmEngine`, which Shepherd Model Gateway speaks to workers: the same engine in other words.

Loaded only when the setting `vllm_engine` is on: its messages come from the package `smg-grpc-proto` (extra `smg`).
"""
