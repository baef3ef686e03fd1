"""The load generator: how requests arrive, the clients that send them, what is counted. `benchmarks/load.py` runs it.

Imports no torch; only the gRPC clients import grpc.
"""
