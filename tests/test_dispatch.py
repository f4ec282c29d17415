"""Which implementation of attention and top-k is used where."""

import dataclasses
import itertools
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pmc_jax.model.attention import causal_attention, write_and_attend
from pmc_jax.model.kernels import dispatch, native
from pmc_jax.model.kernels.cpu_causal import causal_attention_cpu
from pmc_jax.model.kernels.cpu_decode import write_and_attend_cpu
from pmc_jax.model.kernels.dispatch import (
    Target,
    causal_attention_for,
    causal_kernel,
    compute_capability,
    current_target,
    decode_kernel,
    is_one_cpu,
    supported_kernels,
    top_k_kernel,
    unrolls_layers,
    without_kernels,
    write_and_attend_for,
)
from pmc_jax.model.kernels.gpu_causal import causal_attention_gpu
from pmc_jax.model.kernels.gpu_decode import write_and_attend_gpu
from pmc_jax.model.sharding import MESH_AXES

CPU, PLAIN_CPU = Target("cpu", False, frozenset({"native"})), Target("cpu", False)
GPU = Target("gpu", False, frozenset({"triton", "cudnn"}))
TPU = Target("tpu", False)


def one_device_mesh():
    devices = np.array(jax.local_devices(backend="cpu")[:1]).reshape(1, 1)
    return jax.sharding.Mesh(devices, MESH_AXES)


@pytest.fixture
def gpu(monkeypatch):
    """A GPU as JAX describes it."""
    device = SimpleNamespace(compute_capability="9.0")
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "devices", lambda: [device])
    return device


# --- the rules ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backend", "dtype", "options", "kernels"),
    [
        ("cpu", "float32", {}, {"native"}),
        ("cpu", "bfloat16", {}, set()),
        ("cpu", "float64", {}, set()),
        ("tpu", "float32", {}, set()),
        ("tpu", "bfloat16", {}, set()),
        ("gpu", "bfloat16", {"capability": 9.0}, {"triton", "cudnn"}),
        ("gpu", "float16", {"capability": 8.0}, {"triton", "cudnn"}),
        ("gpu", "bfloat16", {"capability": 9.0, "deterministic": True}, {"triton"}),
        ("gpu", "float32", {"capability": 9.0}, set()),
        ("gpu", "bfloat16", {"capability": 7.5}, set()),
        ("gpu", "bfloat16", {}, set()),
    ],
)
def test_supported_kernels(backend, dtype, options, kernels):
    assert supported_kernels(backend, dtype, **options) == kernels


@pytest.mark.parametrize(
    ("target", "head_dim", "time", "softcap", "kernel"),
    [
        (CPU, 16, 5, None, "native"),
        (CPU, 16, 5, 2.0, "native"),
        (CPU, 12, 5, None, "xla"),
        (PLAIN_CPU, 16, 5, None, "xla"),
        (GPU, 64, 6, None, "cudnn"),
        (GPU, 128, 6, None, "cudnn"),
        (GPU, 256, 6, None, "xla"),
        (GPU, 64, 5, None, "xla"),
        (GPU, 64, 6, 2.0, "xla"),
        (TPU, 64, 6, None, "xla"),
    ],
)
def test_causal_kernel(target, head_dim, time, softcap, kernel):
    assert causal_kernel(target, head_dim, 4, time, softcap) == kernel
    for model, expected in ((2, kernel), (4, kernel), (8, "xla")):
        on_mesh = dataclasses.replace(target, mesh=True, model=model)
        assert causal_kernel(on_mesh, head_dim, 4, time, softcap) == expected


@pytest.mark.parametrize(
    ("target", "head_dim", "elements", "kernel"),
    [
        (CPU, 16, 2**31, "native"),
        (CPU, 12, 0, "xla"),
        (PLAIN_CPU, 16, 0, "xla"),
        (GPU, 64, 2**31 - 1, "triton"),
        (GPU, 64, 2**31, "xla"),
        (GPU, 48, 0, "xla"),
        (TPU, 64, 0, "xla"),
    ],
)
def test_decode_kernel(target, head_dim, elements, kernel):
    assert decode_kernel(target, head_dim, 4, elements) == kernel
    for model, expected in ((2, kernel), (4, kernel), (8, "xla")):
        on_mesh = dataclasses.replace(target, mesh=True, model=model)
        assert decode_kernel(on_mesh, head_dim, 4, elements) == expected


def test_top_k_kernel():
    """On a mesh each device has a part of the vocabulary."""
    targets = (CPU, PLAIN_CPU, GPU, TPU, dataclasses.replace(CPU, mesh=True))
    assert [top_k_kernel(x) for x in targets] == ["native", "xla", "xla", "xla", "xla"]


def test_layers_are_unrolled_on_gpus_and_on_one_cpu():
    found = {
        (backend, mesh): (unrolls_layers(Target(backend, mesh)), is_one_cpu(Target(backend, mesh)))
        for backend, mesh in itertools.product(("cpu", "gpu", "tpu"), (False, True))
    }
    assert found == {
        ("cpu", False): (True, True), ("cpu", True): (False, False),
        ("gpu", False): (True, False), ("gpu", True): (True, False),
        ("tpu", False): (False, False), ("tpu", True): (False, False),
    }  # fmt: skip


# --- the current machine --------------------------------------------------------------------


def test_where_kernels_are_used(monkeypatch):
    """On a CPU, with a C++ compiler and without."""
    if "native" not in current_target(jnp.float32).kernels:
        pytest.skip("needs CPUs and a C++ compiler")
    q, caches = jnp.zeros((2, 3, 4, 16)), jnp.zeros((1, 2, 3, 4, 8, 16))
    target = current_target(q.dtype)
    assert target == CPU
    assert write_and_attend_for(target, q, q, caches) is write_and_attend_cpu
    assert write_and_attend_for(target, q[..., :12], q, caches) is write_and_attend
    causal = causal_attention_for(target, q, q, 2.0)
    assert (causal.func, causal.keywords) == (causal_attention_cpu, {"softcap": 2.0})
    assert causal_attention_for(target, q[..., :12], q, 2.0).func is causal_attention
    assert causal_attention_for(current_target(jnp.bfloat16), q, q, 2.0).func is causal_attention
    for dtype in (jnp.bfloat16, jnp.float64):
        assert current_target(dtype) == PLAIN_CPU
    with jax.set_mesh(one_device_mesh()):
        target = current_target(jnp.float32)
        assert target == Target("cpu", True, CPU.kernels)
        on_mesh = (
            write_and_attend_for(target, q, q, caches),
            causal_attention_for(target, q, q, 2.0),
        )
        assert not {*on_mesh} & {write_and_attend, write_and_attend_cpu, causal_attention_cpu}
        with without_kernels():
            assert current_target(jnp.float32) == Target("cpu", True)
    with monkeypatch.context() as patch:
        patch.setattr(jax, "default_backend", lambda: "tpu")
        assert current_target(jnp.float32) == TPU
    monkeypatch.setattr(native, "register", lambda: None)
    target = current_target(jnp.float32)
    assert target == PLAIN_CPU
    assert write_and_attend_for(target, q, q, caches) is write_and_attend
    assert causal_attention_for(target, q, q, None).func is causal_attention


@pytest.mark.parametrize(
    ("platform", "backend"), [("tpu", "tpu"), ("cuda", "gpu"), ("rocm", "gpu"), (None, "cpu")]
)
def test_a_mesh_knows_its_devices(platform, backend, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    device = platform and jax.sharding.AbstractDevice("any", None, platform)
    mesh = jax.sharding.AbstractMesh((2, 4), MESH_AXES, abstract_device=device)
    monkeypatch.setattr(jax.sharding, "get_abstract_mesh", lambda: mesh)
    target = current_target(jnp.float16)
    assert (target.backend, target.mesh, target.model) == (backend, True, 4)


def test_kernels_are_compiled_only_where_they_can_be_used(monkeypatch, gpu):
    monkeypatch.setattr(native, "available", None)
    assert current_target(jnp.float32) == Target("gpu", False)
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    assert current_target(jnp.bfloat16) == PLAIN_CPU
    with jax.set_mesh(one_device_mesh()):
        assert current_target(jnp.bfloat16) == Target("cpu", True)


def test_where_there_is_a_kernel(monkeypatch, gpu):
    """Decode steps on a GPU."""
    q, keys = jnp.zeros((2, 3, 4, 64), jnp.bfloat16), jnp.zeros((2, 2, 32, 64), jnp.bfloat16)
    caches = jnp.zeros((1, 2, 3, 2, 16, 64), jnp.bfloat16)
    assert current_target(q.dtype) == GPU
    assert write_and_attend_for(GPU, q, keys, caches) is write_and_attend_gpu
    assert write_and_attend_for(GPU, q[..., :48], keys, caches) is write_and_attend
    assert not current_target(jnp.float32).kernels
    # A mesh knows its devices.
    with jax.set_mesh(one_device_mesh()):
        assert current_target(q.dtype) == Target("cpu", True)
    with monkeypatch.context() as patch:
        patch.setattr(dispatch, "MAX_ELEMENTS", caches.size)
        assert write_and_attend_for(GPU, q, keys, caches) is write_and_attend
    for capability in ("7.5", "gfx942", None):
        gpu.compute_capability = capability
        assert not current_target(q.dtype).kernels, capability
    assert compute_capability(object()) == 0
    gpu.compute_capability = "8.0"
    assert current_target(q.dtype) == GPU
    # The module fails to import.
    monkeypatch.setitem(sys.modules, "pmc_jax.model.kernels.gpu_decode", None)
    target = current_target(q.dtype)
    assert target.kernels == {"cudnn"}
    assert write_and_attend_for(target, q, keys, caches) is write_and_attend


def test_where_there_is_flash_attention(monkeypatch, gpu):
    """Whole sequences on a GPU."""
    q = jnp.zeros((2, 6, 4, 64), jnp.bfloat16)
    assert causal_attention_for(PLAIN_CPU, q, q, 2.0).keywords == {"softcap": 2.0}
    assert causal_attention_for(current_target(q.dtype), q, q, None) is causal_attention_gpu
    assert causal_attention_for(GPU, q, q, 2.0).func is causal_attention
    monkeypatch.setenv("XLA_FLAGS", "--xla_gpu_deterministic_ops=true")
    target = current_target(q.dtype)
    assert target.kernels == {"triton"}
    assert causal_attention_for(target, q, q, None).func is causal_attention
