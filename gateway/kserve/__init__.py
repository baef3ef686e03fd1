"""The Open Inference Protocol, version 2 (KServe, Triton), over gRPC: the same generation in other words."""
