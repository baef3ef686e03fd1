"""Kernels in C++ for decoders on CPUs with AVX-512 and AVX512-BF16, reached through ctypes. Knows no model."""
