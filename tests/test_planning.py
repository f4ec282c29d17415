"""Plans: counts against closed forms and XLA's own, and the search for settings that fit."""

import dataclasses
import importlib.util
import json
import math
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from pmc_jax import plan
from pmc_jax.decoding.layout import cache_lengths
from pmc_jax.errors import UserError
from pmc_jax.model import ModelConfig, on_mesh, param_count, param_specs
from pmc_jax.model.kernels import native
from pmc_jax.model.kernels.dispatch import current_target
from pmc_jax.planning import search
from pmc_jax.planning.compiled import collectives, matmul_flops
from pmc_jax.planning.devices import Topology
from pmc_jax.planning.page import aligned, uneven
from pmc_jax.planning.phases import (
    Compiled,
    Job,
    batch_shape,
    bounded,
    bytes_needed,
    footprint_of,
    response_room,
)
from pmc_jax.runtime.memory import memory_size
from pmc_jax.training.optimizer import Optimizer
from pmc_jax.unlearning.pmc import PMC
from pmc_jax.unlearning.schedule import Training

REPOSITORY = Path(__file__).parent.parent
CFG = ModelConfig(
    vocab_size=1000, hidden_size=64, intermediate_size=256, num_layers=2, num_heads=6,
    num_kv_heads=2, head_dim=16,
)  # fmt: skip
TINY = {
    "architectures": ["LlamaForCausalLM"], "vocab_size": 400, "hidden_size": 32,
    "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "tie_word_embeddings": False,
    "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
}  # fmt: skip
TINY_CFG = ModelConfig(
    vocab_size=400, hidden_size=32, intermediate_size=48, num_layers=3, num_heads=4,
    num_kv_heads=2, head_dim=16,
)  # fmt: skip


def planned(tmp_path: Path, *arguments: str) -> dict:
    """The JSON of a plan for the tiny model, computed in a process of its own."""
    out = tmp_path / "plan.json"
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    command = [
        sys.executable, "-m", "pmc_jax.plan", "experiment=own", f"model.path={tmp_path}",
        f"out={out}", "tries=4", "method.max_new_tokens=null", *arguments,
    ]  # fmt: skip
    environment = {"PYTHONPATH": str(REPOSITORY), "NPROC": "32", "PATH": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    return json.loads(out.read_text())


def by_name(found: dict) -> dict[str, dict]:
    return {function["name"]: function for function in found["functions"]}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A plan for one device in float32."""
    return planned(
        tmp_path_factory.mktemp("one"), "topology=cpu:1", "memory=1GB", "training.batch_size=2",
        "training.accumulation=2", "model.dtype=float32", "model.remat=none",
        "training.decode_batch=12", "evaluation.decode_batch=12", "evaluation.attack_samples=4",
        "training.max_length=96", "prompt_tokens=20", "method.samples=4",
    )  # fmt: skip


@pytest.mark.slow
def test_bytes_are_those_of_the_arrays(whole):
    """Weights, two moments, two sets of gradients, keys and values: counted by hand."""
    count, functions = param_count(TINY_CFG), by_name(whole)
    assert whole["fits"] is True and whole["parameters"] == count and whole["mesh"] == "1x1"
    train = functions["train step"]["bytes"]
    assert train["params"] == 4 * count
    assert train["moments"] == 8 * count + 2 * 4  # and two counters of updates
    assert train["gradients"] == 8 * count
    per_token = 3 * 2 * 2 * 16 * 4
    width, room = 24, 96  # the buckets for 20 and for 96 - 20 - 1 tokens
    for name, rows in (("sample", 12), ("answer", 12), ("attack", 12)):
        groups = rows // (1 if name == "answer" else 4)
        held = functions[f"{name}: decode"]["bytes"]
        cached = groups * width * (per_token + 1)  # a mask takes one byte for a token
        assert held["cache"] == cached + rows * room * per_token
        assert held["decoding params"] == held["params"] == 4 * count
        assert ("moments" in held) == (name == "sample")
        grown = functions[f"{name}: grow"]["bytes"]["cache"]
        # The old values are there until they are copied; the old keys are freed by then.
        assert grown - held["cache"] == rows * cache_lengths(room)[-2] * per_token // 2
    for function in whole["functions"]:
        assert function["peak"] == sum(function["bytes"].values())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("merge", "base_dtype"), [("true", "auto"), ("false", "auto"), ("false", "int8")]
)
def test_an_adapter_needs_moments_and_gradients_of_its_own_size(merge, base_dtype, tmp_path):
    """A model of n weights in bfloat16 or int8, and an adapter of rank 2 on q and down."""
    found = planned(
        tmp_path, "topology=cpu:1", "memory=1GB", "training.batch_size=2",
        "training.accumulation=1", "model.dtype=bfloat16", "training.decode_batch=12",
        "training.max_length=96", "prompt_tokens=20", "method.samples=4",
        "adapter=lora", "adapter.rank=2", "adapter.targets=[q,down]", f"adapter.merge={merge}",
        f"adapter.base_dtype={base_dtype}",
    )  # fmt: skip
    functions, specs = by_name(found), jax.tree.leaves(param_specs(TINY_CFG))
    own = 3 * 2 * ((32 + 4 * 16) + (48 + 32))  # layers · rank · (inputs + outputs)
    base = sum(math.prod(s.shape) * (2 if s.init == "normal" else 4) for s in specs)
    if base_dtype == "int8":  # a byte less for each weight, and scales for each output channel
        matrices = 32 * 4 * 16 * 2 + 2 * 32 * 2 * 16 + 3 * 32 * 48
        channels = 4 * 16 + 2 * 2 * 16 + 32 + 2 * 48 + 32
        base += 3 * (4 * channels - matrices)
    train = functions["train step"]["bytes"]
    assert train["params"] == train["gradients"] == 4 * own
    assert train["moments"] == 8 * own + 2 * 4
    assert train["base"] == base
    decoding = functions["sample: decode"]["bytes"]["decoding params"]
    # On the fly, the matrices are the base's own; only norms are cast.
    norms = sum(2 * math.prod(s.shape) for s in specs if s.init != "normal")
    assert decoding == (2 * param_count(TINY_CFG) if merge == "true" else 2 * own + norms)
    # The models before and after are in the dtype of products, and shared with decoding, too.
    answering = functions["answer: decode"]["bytes"]
    assert answering["params"] == 2 * param_count(TINY_CFG)
    assert answering["decoding params"] == (answering["params"] if merge == "true" else 0)


def train_flops(rows: int, time: int, layers: int = 3) -> int:
    """Three times the forward pass; four times for the logits, which are recomputed."""
    matrices = sum((32 * 4 * 16 * 2, 32 * 2 * 16 * 2, 3 * 32 * 48)) * layers
    attention = layers * 2 * 4 * 16 * time * time
    head = 32 * 400 * (time - 1)
    return 2 * rows * (3 * (matrices * time + attention) + 4 * head)


@pytest.mark.slow
def test_flops_are_those_of_the_matrix_products(whole):
    """Rows hold two sequences of 96 tokens."""
    rows, time = 2 * 2, 2 * 96
    expected = train_flops(rows, time)
    train = by_name(whole)["train step"]
    assert train["matmul_flops"] == expected
    assert train["model_flops"] == 6 * param_count(TINY_CFG) * rows * time
    assert train["xla_flops"] < expected  # XLA counts every loop once


@pytest.mark.slow
def test_on_a_mesh_everything_is_shared(tmp_path, whole):
    found = planned(
        tmp_path, "topology=cpu:4", "mesh=2x2", "memory=1GB", "training.batch_size=2",
        "training.accumulation=2", "model.dtype=float32", "model.remat=none",
        "training.decode_batch=16",
        "training.max_length=96", "prompt_tokens=20", "method.samples=4",
    )  # fmt: skip
    one, four = by_name(whole)["train step"], by_name(found)["train step"]
    assert four["matmul_flops"] == one["matmul_flops"]
    # Norm weights are sharded over "data" only.
    norms = (3 * 2 + 1) * 32
    assert 4 * four["bytes"]["params"] == one["bytes"]["params"] + 4 * norms
    assert four["collectives"]["all-gather"] > 0 and not one["collectives"]
    decode, alone = by_name(found)["sample: decode"], by_name(whole)["sample: decode"]
    assert "all-gather" not in by_name(found)["answer: prefill"]["collectives"]
    assert decode["bytes"]["decoding params"] < 0.6 * alone["bytes"]["decoding params"]


@pytest.mark.slow
def test_what_does_not_fit_is_mended(tmp_path):
    """With memory for a train step that recomputes more, but not for the one that is given."""
    arguments = [
        "topology=cpu:2", "training.batch_size=32", "training.accumulation=1",
        "training.micro_batch=32", "training.decode_batch=16", "method.samples=4",
        "model.dtype=float32", "model.remat=none", "evaluation.attack_samples=0",
    ]  # fmt: skip
    first = planned(tmp_path, *arguments)
    assert first["fits"] is None and first["nearest"] is None
    peak = by_name(first)["train step"]["peak"]
    others = max(p["peak"] for p in first["functions"] if p["name"] != "train step")
    assert others < 0.7 * peak
    found = planned(tmp_path, *arguments, f"memory={0.95 * peak / 1e6}MB")
    assert found["fits"] is False
    assert found["nearest"]["change"] in ({"model.remat": "dots"}, {"model.remat": "full"})
    assert found["nearest"]["fits"] and found["attempts"][-1]["fits"]
    assert all(p["peak"] <= found["memory"] for p in found["nearest"]["functions"])


JOB = Job(
    CFG, "bfloat16", "float32", "dots", PMC(samples=4),
    Training(batch_size=8, accumulation=1, decode_batch=64), Optimizer(), 4, 2, 32,
)  # fmt: skip


@pytest.mark.parametrize(
    "name", ["train step", "sample: prefill", "sample: decode", "answer: decode"]
)
def test_temporaries_of_a_gpu_are_within_the_bound(name):
    """A CPU's compiler may widen all weights at once; what is smaller than the bound stays."""
    held = {"params": 5, "gradients": 7, "cache": 11}

    def capped(temporaries):
        peak = sum(held.values()) + temporaries
        found = bounded(
            Compiled(name, {**held, "temporaries": temporaries}, peak, 0, 0.0, {}, None, 0.0), JOB,
            "gpu",
        )  # fmt: skip
        assert found.peak == sum(found.bytes.values())
        return found.peak

    model, room = footprint_of(JOB, "gpu"), response_room(JOB)
    bound = {
        "train step": model.train_step(
            *batch_shape(JOB)[1:], remat="dots", gradient_bytes=4, parts=1,
            update_norm=False,
        ),
        "sample: prefill": model.prefill(8, 32),
        "sample: decode": model.decode(8, 4, 32, room, filters=False),
        "answer: decode": model.decode(64, 1, 32, room, filters=False),
    }[name]  # fmt: skip
    assert capped(10**12) == 5 + bound and capped(1) == sum(held.values()) + 1


@pytest.mark.parametrize(("name", "kernels"), [("cpu:1", {"native"}), ("h200:1", set())])
def test_kernels_of_cpus_are_not_planned_for_gpus(name, kernels, monkeypatch):
    """A CPU's compiler stands in for a GPU's."""
    seen = []

    def compile_phase(job, phase, mesh, on_compiled):
        with on_mesh(mesh):
            seen.append(current_target(jnp.float32).kernels)

    monkeypatch.setattr(native, "available", lambda: True)
    monkeypatch.setattr(search, "compile_phase", compile_phase)
    topology = Topology(name, jax.devices()[:1], None, exact=False)
    job = dataclasses.replace(JOB, data=1, model_axis=1)
    search.compile_all(job, topology, ["train"], print)
    assert seen == [kernels]


def searched(monkeypatch, fits, tries=99, job=JOB):
    """The nearest change that fits according to `fits(job, phase)`, and what was compiled."""
    compiled = []

    def compile_all(job, topology, phases, say):
        compiled.append((job, phases))
        function = Compiled(phases[0], {}, 0 if fits(job, phases[0]) else 2, 0, 0.0, {}, None, 0.0)
        return search.Outcome(job, (function,), function.peak == 0)

    monkeypatch.setattr(search, "compile_all", compile_all)
    monkeypatch.setattr(search, "least_bytes", lambda job, phase, mesh: 0)
    monkeypatch.setattr(Topology, "mesh", lambda self, data, model: None)
    topology = Topology("cpu:8", [], 1, exact=True)
    first = [compile_all(job, topology, phases, None) for phases in search.PARTS]
    outcome = search.Outcome(job, (*first[0].functions, *first[1].functions), False)
    compiled.clear()
    found, attempts = search.nearest_that_fits(outcome, topology, tries, lambda _: None)
    assert len(attempts) == len(compiled) <= tries
    assert len(set(compiled)) == len(compiled)  # nothing is compiled twice
    return found and found[0], compiled


def test_the_nearest_change_comes_first(monkeypatch):
    def any_but(**expected):
        return lambda job, phase: phase != "train" or all(
            getattr(job, k, None) == v or getattr(job.training, k, None) == v
            or getattr(job.optimizer, k, None) == v for k, v in expected.items()
        )  # fmt: skip

    change, compiled = searched(monkeypatch, any_but(remat="full"))
    assert change == {"model.remat": "full"} and len(compiled) == 1
    change, _ = searched(monkeypatch, any_but(micro_batch=2))
    assert change == {"model.remat": "full", "training.micro_batch": 2}
    one = dataclasses.replace(JOB, training=Training(batch_size=1, accumulation=8, decode_batch=64))
    change, _ = searched(monkeypatch, any_but(micro_batch=8), job=one)
    assert change == {"model.remat": "full", "training.micro_batch": 8}
    change, _ = searched(monkeypatch, any_but(data=8))
    assert change == {"mesh": "8x1"}
    change, _ = searched(monkeypatch, any_but(moment_dtype="bfloat16", gradient_dtype="bfloat16"))
    assert change == {"training.gradient_dtype": "bfloat16", "optimizer.moment_dtype": "bfloat16"}
    change, _ = searched(
        monkeypatch, lambda job, phase: phase == "train" or job.training.decode_batch <= 32
    )
    assert change == {"training.decode_batch": 32}

    def both(job, phase):
        return job.remat == "full" if phase == "train" else job.training.decode_batch <= 16

    change, compiled = searched(monkeypatch, both)
    assert change == {"model.remat": "full", "training.decode_batch": 16} and len(compiled) == 3
    assert searched(monkeypatch, lambda job, phase: False, tries=5)[0] is None


def test_alternatives_keep_the_optimizer_batch(monkeypatch):
    _, compiled = searched(monkeypatch, lambda job, phase: phase != "train")
    assert len(compiled) > 20
    for job, _ in compiled:
        assert job.training.questions_per_step == 8 and job.data * job.model_axis == 8
        assert job.cfg.num_heads % job.model_axis == 0


def test_what_the_mesh_does_not_divide_is_named():
    def lines(decode_batch=64, **changes) -> list[str]:
        training = dataclasses.replace(JOB.training, decode_batch=decode_batch)
        return uneven(dataclasses.replace(JOB, training=training, **changes))

    assert lines() == []
    (line,) = lines(decode_batch=24)
    assert "6 prompts" in line and "4 devices" in line and "decode_batch=16 would" in line
    assert lines(decode_batch=16) == []
    (line,) = lines(data=16)  # more devices than questions: no setting helps
    assert "8 prompts" in line and "decode_batch" not in line
    (line,) = lines(model_axis=4)
    assert "2 key/value heads" in line


def test_matrix_products_are_counted_as_xla_counts_them():
    """Without loops the counts agree; a loop's body counts as often as it runs."""
    w, x = jnp.ones((256, 512)), jnp.ones((64, 256))

    def loss(w, x):
        return (jnp.tanh(x @ w) @ w.T).sum()

    gradient = jax.jit(jax.value_and_grad(loss))
    found = matmul_flops(gradient.trace(w, x).jaxpr)
    assert found == pytest.approx(gradient.lower(w, x).compile().cost_analysis()["flops"], rel=0.02)

    def loop(w, x):
        return jax.lax.scan(lambda x, _: ((x @ w) @ w.T, None), x, length=7)[0]

    assert matmul_flops(jax.jit(loop).trace(w, x).jaxpr) == 7 * 2 * 2 * 64 * 256 * 512


COMPILED = """HloModule m

%body (p: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %a = f32[8,4]{1,0} all-reduce(%x), channel_id=1, to_apply=%add
  %g = (bf16[2,4]{1,0}, bf16[8,4]{1,0}) all-gather-start(%y), channel_id=2, dimensions={0}
  ROOT %t = (s32[], f32[8,4]) tuple(%i, %a)
}

%start (p: bf16[2]) -> bf16[8] {
  ROOT %g = bf16[8]{0:S(1)} all-gather(%p), channel_id=3, frontend_attributes={chain_id="1"}
}

%done (p: bf16[2]) -> bf16[8] {
  ROOT %g = bf16[8]{0} all-gather(%p), channel_id=3, frontend_attributes={chain_id="1"}
}

%cond (p: (s32[], f32[8,4])) -> pred[] {
  %n = s32[]{:T(128)} constant(5)
  ROOT %lt = pred[] compare(%i, %n), direction=LT
}

ENTRY %main (p: f32[8,4]) -> f32[8,4] {
  %s = bf16[8]{0} fusion(%q), kind=kCustom, calls=%start
  %d = bf16[8]{0} fusion(%q), kind=kCustom, calls=%done
  %w = (s32[], f32[8,4]) while(%t), condition=%cond, body=%body
  %r = f32[1]{0} reduce-scatter(%z), channel_id=4, to_apply=%add
  ROOT %o = f32[8,4] get-tuple-element(%w), index=1
}
"""


def test_collectives_are_read_from_a_compiled_function():
    found = {
        one.kind: one for one in collectives(COMPILED) if one.depth or one.kind != "all-gather"
    }
    assert found["all-reduce"].bytes == 128 and found["all-reduce"].times == 5
    assert found["all-gather"].shape == (8, 4) and found["all-gather"].bytes == 64
    assert found["all-gather"].depth == 1 and found["all-gather"].times == 5
    assert found["reduce-scatter"].bytes == 4 and found["reduce-scatter"].times == 1
    # An asynchronous collective appears twice, at its start and at its end, and counts once.
    assert sum(one.shape == (8,) for one in collectives(COMPILED)) == 1
    noted = COMPILED.replace(
        "body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"9"}}'
    )
    assert {one.times for one in collectives(noted)} == {1, 9}


def test_tables_are_aligned():
    rows = [["GB per device", "params", "peak", ""], ["train", "1.61", "13.64", "79%"], ["x"] * 4]
    assert aligned(rows) == [
        "GB per device  params   peak",
        "train            1.61  13.64  79%",
        "x                   x      x  x",
    ]
    assert len(aligned([["a", "b " * 200 + "c"]])) == 1


@pytest.mark.parametrize(
    ("text", "size"), [("80GB", 80 * 10**9), ("16GiB", 2**34), ("1.5 GB", 1_500_000_000)]
)
def test_sizes_of_memory(text, size):
    assert memory_size(text) == size


@pytest.mark.parametrize("text", ["80", "GB", "80 TBs", "-1GB", ""])
def test_other_sizes_are_refused(text):
    with pytest.raises(UserError, match="expected a size like 80GB or 16GiB"):
        memory_size(text)


ERRORS = {
    "topology=x100:8": "topology=x100:8: expected a TPU topology",
    "topology=h100:0": "topology=h100:0: expected a TPU topology",
    "memory=much": "memory=much: expected a size like 80GB",
    "method=npo": "method=npo: expected a method that samples, such as pmc",
    "mesh=4x2": "mesh=4x2: cpu:1 has 1 device",
    "prompt_tokens=300": "prompt_tokens=300: expected at most 198",
    "model=hf": "model.path is missing",
    "training.gradient_dtype=float16": "expected one of float32, bfloat16",
    "optimizer.moment_dtype=int8": "expected one of float32, bfloat16",
}


@pytest.fixture
def cache_goes_on():
    """A plan turns the compilation cache off; turn it on again for the tests after it."""
    kept = jax.config.jax_enable_compilation_cache
    yield
    jax.config.update("jax_enable_compilation_cache", kept)


@pytest.mark.usefixtures("cache_goes_on")
@pytest.mark.parametrize("argument", ERRORS)
def test_mistakes_are_one_line(argument, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["plan", "experiment=tofu_llama3_2_3b", argument])
    with pytest.raises(SystemExit) as stopped:
        plan.main()
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert ERRORS[argument] in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("message", "needed"),
    [
        ("RESOURCE_EXHAUSTED: Used 20.5G of 15.75G hbm. Exceeded", 20.5 * 2**30),
        ("memory required for HLO temporaries (512.00M) exceeds available HBM (15.75G).", 2**29),
        ("INTERNAL: something else (3.00G)", None),
    ],
)
def test_the_memory_that_a_tpu_compiler_lacks_is_read(message, needed):
    assert bytes_needed(message) == needed


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
def test_a_tpu_topology(tmp_path):
    """The TPU's own compiler compiles it, and says how much memory is missing."""
    arguments = ("topology=v5e:2x2", "mesh=2x2", "training.batch_size=4", "method.samples=4")
    found = planned(tmp_path, *arguments, "training.decode_batch=16")
    assert found["fits"] and found["exact_compiler"] and found["devices"] == 4
    train = by_name(found)["train step"]
    assert train["collectives"]["all-gather"] > 0
    assert train["bytes"]["params"] < 4 * param_count(TINY_CFG) / 3
    large = planned(
        tmp_path, *arguments, "training.decode_batch=16", "training.batch_size=32768", "tries=0"
    )
    assert large["fits"] is False
    assert "hbm" in by_name(large)["train step"]["refused"].lower()
    assert by_name(large)["train step"]["peak"] > 2**34
