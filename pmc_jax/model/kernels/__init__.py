"""Attention and top-k for particular devices; `dispatch` says which implementation runs where.

| | attention within sequences | attention of a decode step | top-k |
|---|---|---|---|
| one CPU, float32 | `cpu_causal` | `cpu_decode` | `cpu_top_k` |
| one NVIDIA GPU, bfloat16 or float16 | `gpu_causal` | `gpu_decode` | XLA |
| everything else, meshes included | XLA | XLA | XLA |

Each computes what the functions of `pmc_jax.model.attention` or `jax.lax.top_k` compute. The
kernels for CPUs are written in C++ (`native`); those for GPUs are cuDNN's and one in Pallas.
"""
