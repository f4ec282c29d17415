"""Speeds in the log against closed forms; how functions are compiled and cached."""

import importlib.util
import os
import subprocess
import sys
import time
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pmc_jax.model import to_devices
from pmc_jax.runs.throughput import peak_flops, speeds
from pmc_jax.runtime import compilation
from pmc_jax.runtime.compilation import (
    MIN_SECONDS,
    cache_directory,
    compile_seconds,
    compile_sooner_on_cpus,
    covered,
    keep_compiled,
)

ROW = {"tokens_trained": 300, "tokens_sampled": 80, "seconds": {"train": 2.0, "sample": 0.5}}


def test_speeds_are_counts_over_seconds():
    found = speeds(ROW, 1000)
    assert found == {"train_tokens": 150, "sample_tokens": 160, "train_model_flops": 6 * 1000 * 150}
    assert "sample_tokens" not in speeds({**ROW, "tokens_sampled": 0}, 1000)


def test_utilisation_is_of_all_devices(monkeypatch):
    device = SimpleNamespace(device_kind="NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(jax, "devices", lambda: [device] * 4)
    monkeypatch.setattr(jax, "device_count", lambda: 4)
    assert speeds(ROW, 10**9)["mfu"] == pytest.approx(6e9 * 150 / (4 * 989e12))


@pytest.mark.parametrize(
    ("kind", "peak"),
    [("TPU v5 lite", 197e12), ("TPU v5", 459e12), ("NVIDIA L40S", 362e12), ("NVIDIA L4", 121e12),
     ("cpu", None)],
)  # fmt: skip
def test_peaks_by_name(kind, peak):
    assert peak_flops(kind) == peak


def test_compiled_functions_are_cached_unless_settings_say_otherwise(tmp_path, monkeypatch):
    names = "jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs"
    former = {name: getattr(jax.config, name) for name in names}
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", raising=False)
    try:
        jax.config.update(names[0], "elsewhere")
        keep_compiled()
        assert getattr(jax.config, names[0]) == "elsewhere"
        jax.config.update(names[0], None)
        keep_compiled()
        assert getattr(jax.config, names[0]) == str(cache_directory())
        assert cache_directory().parent == tmp_path / "pmc_jax"
        assert getattr(jax.config, names[1]) == MIN_SECONDS
    finally:
        for name, value in former.items():
            jax.config.update(name, value)


@pytest.mark.parametrize(
    ("platforms", "installed", "flags", "expected"),
    [
        ("cpu", "jax_plugins", "", "--xla_backend_optimization_level=1"),
        (None, None, "--xla_dump_to=x", "--xla_dump_to=x --xla_backend_optimization_level=1"),
        (None, "jax_plugins", "", ""),
        ("cuda,cpu", None, "", ""),
        ("cpu", "libtpu", "", ""),
        (None, "an entry point", "", ""),
        ("cpu", "TPU_LIBRARY_PATH", "", ""),
        ("cpu", "PJRT_NAMES_AND_LIBRARY_PATHS", "", ""),
        ("cpu", None, "--xla_backend_optimization_level=3", "--xla_backend_optimization_level=3"),
        ("cpu", None, "file-of-flags", "file-of-flags"),
        ("cpu", None, None, "--xla_backend_optimization_level=1"),
    ],
)
def test_only_cpus_compile_with_fewer_optimisations(
    platforms, installed, flags, expected, monkeypatch
):
    monkeypatch.setenv("XLA_FLAGS", flags or "")
    if flags is None:
        monkeypatch.delenv("XLA_FLAGS")
    for place in ("TPU_LIBRARY_PATH", "PJRT_NAMES_AND_LIBRARY_PATHS"):
        monkeypatch.delenv(place, raising=False)
        if place == installed:
            monkeypatch.setenv(place, "library.so")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == installed or None)
    found = ["plugin"] if installed == "an entry point" else []
    monkeypatch.setattr(compilation, "entry_points", lambda group: found)
    former = jax.config.jax_platforms
    jax.config.update("jax_platforms", platforms)
    try:
        compile_sooner_on_cpus()
    finally:
        jax.config.update("jax_platforms", former)
    assert os.environ["XLA_FLAGS"] == expected


def test_xla_reads_its_flags_after_all_imports():
    """Otherwise, if an import computes something, the optimisation level has no effect."""
    code = (
        "import os, jax, pmc_jax.train, pmc_jax.evaluate, pmc_jax.cli.evaluate; "
        "os.environ['XLA_FLAGS'] = '--no_such_flag'; jax.device_count()"
    )
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert done.returncode and "no_such_flag" in done.stderr


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=8))
def test_what_overlaps_counts_once(pairs):
    """Brute force over unit intervals. JAX reports inner traces before the outer one."""
    spans = [(min(pair), max(pair)) for pair in pairs]
    units = {unit for start, end in spans for unit in range(start, end)}
    assert covered([(float(start), float(end)) for start, end in spans]) == len(units)


def test_compiling_is_within_the_time_it_took_and_once():
    def inner(x):
        return jax.jit(lambda y: jnp.sin(y) ** 3)(x) + 1

    function = jax.jit(lambda x: inner(inner(x)))
    with compile_seconds() as seconds:
        assert seconds() == 0
        started = time.perf_counter()
        function(jnp.ones(3)).block_until_ready()
        first, took = seconds(), time.perf_counter() - started
        function(jnp.ones(3)).block_until_ready()
        assert seconds() == first
    assert 0 < first <= took
    jax.jit(lambda x: x * 5)(jnp.ones(3))
    assert seconds() == first


def test_arrays_reach_the_device_without_compilation():
    """Otherwise every shape would compile a function of its own."""
    numbers = np.linspace(0, 1, 37 * 41).reshape(37, 41)
    with compile_seconds() as seconds:
        found = to_devices(numbers)
        assert seconds() == 0
    np.testing.assert_array_equal(found, np.float32(numbers))
    assert found.dtype == jnp.float32
