"""Fused CUDA kernels, each beside the reference in torch that defines it."""
