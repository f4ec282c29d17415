"""Which implementation of attention and top-k runs where.

`current_target` detects devices and kernels; nothing else in the package asks JAX for its
backend. A function asks once, when it is traced, and passes the `Target` on. Every choice is a pure
function of a `Target` and of the shapes on one device.
"""

import dataclasses
import importlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh
from jaxtyping import Array, DTypeLike

from pmc_jax.model.attention import causal_attention, write_and_attend
from pmc_jax.model.cache import PREFIX_AXES, SUFFIX_AXES
from pmc_jax.model.kernels import native
from pmc_jax.model.kernels.cpu_causal import causal_attention_cpu
from pmc_jax.model.kernels.cpu_decode import write_and_attend_cpu
from pmc_jax.model.kernels.gpu_causal import causal_attention_gpu
from pmc_jax.model.sharding import RULES, elements_of_shard, has_mesh, per_shard

Kernel = Literal["xla", "native", "cudnn", "triton"]
"""XLA's operations, the C++ kernels for CPUs, cuDNN's attention, the Pallas kernel for GPUs."""

TRITON_HEAD_DIMS = (16, 32, 64, 128, 256)
"""Head sizes of the Pallas kernel: Triton's blocks are powers of two."""

CUDNN_HEAD_DIMS = range(8, 129, 8)
"""Head sizes for which cuDNN has attention and its gradient on every GPU that Triton supports."""

MAX_ELEMENTS = 2**31
"""Arrays in the Pallas kernel are smaller than this, since its offsets have 32 bits."""

HEADS, KV_HEADS = ("batch", None, "heads", None), ("batch", None, "kv_heads", None)
"""Logical axes of queries, and of keys and values."""

CAUSAL_AXES = (HEADS, KV_HEADS, KV_HEADS, ("batch", None), ())
"""Logical axes of the arguments of `causal_attention`."""

OF_LAYER = PREFIX_AXES[1:]
"""Logical axes of one layer's cache of prompts."""

DECODE_AXES = (
    HEADS, KV_HEADS, KV_HEADS, (("batch", None, None),) * 2, OF_LAYER, OF_LAYER, ("batch", None),
    SUFFIX_AXES, SUFFIX_AXES, (), (), (), ("batch", None),
)  # fmt: skip
"""Logical axes of the arguments of `write_and_attend`."""

MIN_CAPABILITY = 8.0
"""Compute capability of the oldest GPUs that Triton supports."""


@dataclasses.dataclass(frozen=True)
class Target:
    """The devices that a function is compiled for.

    Attributes:
        backend: "cpu", "gpu" or "tpu".
        mesh: whether a mesh is set, even one of a single device.
        kernels: the kernels that can be called there, besides XLA's own operations.
        model: the number of devices along the mesh's axis "model", which share the heads.
    """

    backend: str
    mesh: bool
    kernels: frozenset[Kernel] = frozenset()
    model: int = 1

    def divides(self, kv_heads: int) -> bool:
        """Whether each device has its own heads, of queries as of keys, as a kernel needs them."""
        return kv_heads % self.model == 0


def supported_kernels(
    backend: str,
    dtype: DTypeLike,
    *,
    capability: float = 0.0,
    deterministic: bool = False,
) -> frozenset[Kernel]:
    """The kernels for arrays of this dtype on such devices, if they can be loaded there.

    Args:
        capability: compute capability of an NVIDIA GPU; 0 for other devices.
        deterministic: whether XLA has to use deterministic operations only. The gradient of
            cuDNN's attention is not one: its bits can differ between two calls.
    """
    dtype = jnp.dtype(dtype)
    if backend == "cpu" and dtype == jnp.float32:
        return frozenset({"native"})
    if backend == "gpu" and capability >= MIN_CAPABILITY and dtype in (jnp.bfloat16, jnp.float16):
        return frozenset({"triton"} if deterministic else {"triton", "cudnn"})
    return frozenset()


def compute_capability(device: Any) -> float:
    """Compute capability of an NVIDIA GPU; 0 for other devices."""
    capability = str(getattr(device, "compute_capability", ""))
    return float(capability) if capability[:1].isdigit() else 0.0


_without: ContextVar[bool] = ContextVar("without kernels", default=False)


@contextmanager
def without_kernels() -> Iterator[None]:
    """What is traced within has XLA's operations only.

    `pmc plan` compiles for GPUs that are not there with virtual CPUs, whose kernels would mislead.
    """
    token = _without.set(True)
    try:
        yield
    finally:
        _without.reset(token)


def current_target(dtype: DTypeLike) -> Target:
    """The target of functions that are traced now, with the kernels for arrays of this dtype.

    The first call for float32 on a CPU compiles the C++ kernels, or loads them.
    """
    mesh = jax.sharding.get_abstract_mesh()
    backend = jax.default_backend() if mesh.empty else _backend_of(mesh)
    kernels = supported_kernels(
        backend, dtype,
        capability=compute_capability(jax.devices()[0]),
        deterministic="deterministic" in os.environ.get("XLA_FLAGS", ""),
    )  # fmt: skip
    loaded = frozenset() if _without.get() else frozenset(filter(_can_load, kernels))
    return Target(backend, has_mesh(), loaded, mesh.shape.get(RULES["heads"], 1))


def _backend_of(mesh: AbstractMesh) -> str:
    """The kind of the devices that a mesh was made of; it may be planned for, and not be here."""
    platform = getattr(mesh.abstract_device, "platform", None) or jax.default_backend()
    return "gpu" if platform in ("cuda", "rocm") else platform


def _can_load(kernel: Kernel) -> bool:
    if kernel == "native":
        return native.available()
    if kernel == "triton":
        try:  # imported only here, since importing Pallas takes half a second
            importlib.import_module("pmc_jax.model.kernels.gpu_decode")
        except ImportError:  # JAX has announced that it will remove Triton from Pallas
            return False
    return True


def causal_kernel(
    target: Target, head_dim: int, kv_heads: int, time: int, softcap: float | None
) -> Kernel:
    """The implementation of attention within sequences of `time` tokens."""
    if not target.divides(kv_heads):
        return "xla"
    if "native" in target.kernels and head_dim % native.VECTOR == 0:
        return "native"
    for_cudnn = softcap is None and time % 2 == 0 and head_dim in CUDNN_HEAD_DIMS
    return "cudnn" if "cudnn" in target.kernels and for_cudnn else "xla"


def decode_kernel(target: Target, head_dim: int, kv_heads: int, elements: int = 0) -> Kernel:
    """The implementation of a decode step's attention.

    `elements` is the size of the largest cache on a device.
    """
    if not target.divides(kv_heads):
        return "xla"
    if "native" in target.kernels and head_dim % native.VECTOR == 0:
        return "native"
    for_triton = head_dim in TRITON_HEAD_DIMS and elements < MAX_ELEMENTS
    return "triton" if "triton" in target.kernels and for_triton else "xla"


def top_k_kernel(target: Target) -> Kernel:
    """The implementation of top-k over the vocabulary."""
    return "native" if "native" in target.kernels and not target.mesh else "xla"


def unrolls_layers(target: Target) -> bool:
    """Whether decoding reads each layer from a stack of its own.

    It does on GPUs, and on a CPU without a mesh. There XLA copies what a scan takes from a stack at
    every step, suffix caches included.
    """
    return target.backend == "gpu" or is_one_cpu(target)


def is_one_cpu(target: Target) -> bool:
    """Whether the target is a CPU without a mesh."""
    return target.backend == "cpu" and not target.mesh


def causal_attention_for(
    target: Target, q: Array, k: Array, softcap: float | None
) -> Callable[..., Array]:
    """`causal_attention` with this `softcap` for such queries and keys.

    Both are `[batch, time, heads, head_dim]`, keys with their own number of heads.
    """
    _, time, _, head_dim = q.shape
    kernel = causal_kernel(target, head_dim, k.shape[2], time, softcap)
    if kernel == "xla":
        return partial(causal_attention, softcap=softcap)
    cudnn = kernel == "cudnn"
    chosen = causal_attention_gpu if cudnn else partial(causal_attention_cpu, softcap=softcap)
    return per_shard(chosen, CAUSAL_AXES, 0) if target.mesh else chosen


def write_and_attend_for(
    target: Target, q: Array, prefix_k: Array, suffix_k: Array
) -> Callable[..., tuple[Array, Array, Array]]:
    """`write_and_attend` for queries `[batch, samples, heads, head_dim]` and these caches."""
    elements = max(elements_of_shard(prefix_k, OF_LAYER), elements_of_shard(suffix_k, SUFFIX_AXES))
    kernel = decode_kernel(target, q.shape[-1], prefix_k.shape[1], elements)
    if kernel == "xla":
        return write_and_attend
    chosen: Callable[..., tuple[Array, Array, Array]] = write_and_attend_cpu
    if kernel == "triton":
        from pmc_jax.model.kernels.gpu_decode import write_and_attend_gpu

        chosen = write_and_attend_gpu
    return per_shard(chosen, DECODE_AXES, (0, 7, 8)) if target.mesh else chosen
