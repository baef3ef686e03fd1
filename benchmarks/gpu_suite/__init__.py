"""The parts of `benchmarks/gpu.py`. They need torch, transformers and (on a GPU) triton, and nothing else."""
