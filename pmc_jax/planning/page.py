"""A plan as tables of text and as JSON."""

import dataclasses
import io
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pmc_jax.model import param_count
from pmc_jax.planning.devices import Topology
from pmc_jax.planning.phases import PHASES, Compiled, Job, asked_in
from pmc_jax.planning.search import Outcome, too_large

KINDS = (
    "base", "params", "moments", "gradients", "decoding params", "cache", "logits", "temporaries",
)  # fmt: skip


WIDEST = 1000
"""The most columns of text in a table: more than any table has."""


def gigabytes(size: float) -> str:
    """Bytes as gigabytes, 10⁹ bytes: `12.34`."""
    return f"{size / 1e9:.2f}"


def tokens_of(job: Job, function: Compiled) -> int:
    """Tokens that one execution trains on or decodes; 0 for other functions."""
    batch = job.training
    if function.name == "train step":
        each = job.method.answers_per_question + job.method.retain_pairs
        per_step = batch.questions_per_step * each
        return per_step * batch.max_length
    phase, _, step = function.name.partition(": ")
    if step == "decode":
        asked = asked_in(job, phase)
        return asked.prompts * asked.samples
    return 0


def at_a_time(job: Job) -> str:
    """How many responses each phase decodes at a time, in one line."""
    phases = [phase for phase in PHASES[1:] if phase != "attack" or job.attack is not None]
    found = [(phase, asked_in(job, phase)) for phase in phases]
    each = ", ".join(f"{phase} {asked.prompts}x{asked.samples}" for phase, asked in found)
    return f"prompts x samples decoded at a time: {each}"


def model_flops(job: Job, function: Compiled) -> int:
    """6·N for each trained token, 2·N for each decoded one, N parameters (Kaplan et al. 2020).

    An adapter needs no gradients of the weights: 4·N for each trained token.
    """
    training = 6 if job.part is None or job.part.adapter is None else 4
    factor = training if function.name == "train step" else 2
    return factor * param_count(job.cfg) * tokens_of(job, function)


def function_json(job: Job, function: Compiled) -> dict[str, Any]:
    """A compiled function as JSON."""
    return {**dataclasses.asdict(function), "model_flops": model_flops(job, function)}


def outcome_json(outcome: Outcome) -> dict[str, Any]:
    """The settings of a plan and its functions as JSON."""
    job = outcome.job
    return {
        "fits": outcome.fits,
        "mesh": f"{job.data}x{job.model_axis}",
        "remat": job.remat,
        "training": dataclasses.asdict(job.training),
        "optimizer": dataclasses.asdict(job.optimizer),
        "functions": [function_json(job, function) for function in outcome.functions],
    }


def memory_table(outcome: Outcome, topology: Topology) -> list[str]:
    """A line for each function: GB on each device by kind, and their sum."""
    used = {kind for function in outcome.functions for kind in function.bytes}
    kinds = [kind for kind in KINDS if kind != "base" or kind in used]
    head = ["GB per device", *kinds, "peak", ""]
    rows = [head]
    for function in outcome.functions:
        cells = [gigabytes(function.bytes[k]) if k in function.bytes else "" for k in kinds]
        verdict = ""
        if topology.memory is not None:
            share = f"{100 * function.peak / topology.memory:.0f}%"
            verdict = "too large" if too_large(function, topology) else share
        rows.append([function.name, *cells, gigabytes(function.peak), verdict])
    return aligned(rows)


def work_table(outcome: Outcome) -> list[str]:
    """A line for each function: FLOPs of all devices, GB of collectives on each device."""
    rows = [["per execution", "matmul TFLOPs", "model TFLOPs", "collectives: GB per device"]]
    for function in outcome.functions:
        if not function.matmul_flops:
            continue
        moved = ", ".join(f"{kind} {gigabytes(n)}" for kind, n in function.collectives.items())
        wanted = model_flops(outcome.job, function)
        rows.append(
            [
                function.name,
                f"{function.matmul_flops / 1e12:.2f}",
                f"{wanted / 1e12:.2f}" if wanted else "",
                moved or "none",
            ]
        )
    return aligned(rows)


def aligned(rows: list[list[str]]) -> list[str]:
    """Lines of a table. The first column and the last are aligned to the left."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    last = len(rows[0]) - 1
    for column in range(last + 1):
        table.add_column(justify="left" if column in (0, last) else "right", no_wrap=True)
    for row in rows:
        table.add_row(*map(Text, row))
    out = io.StringIO()
    Console(file=out, width=WIDEST, color_system=None).print(table)
    return [line.rstrip() for line in out.getvalue().splitlines()]


def uneven(job: Job) -> list[str]:
    """A line for each dimension that the mesh does not divide and so replicates.

    Rows of a micro-batch are not among them: they are padded to a multiple of the devices.
    """
    found = []
    asked = asked_in(job, "sample")
    prompts, samples = asked.prompts, asked.samples
    if prompts % job.data:
        line = (
            f"{prompts} prompts decoded at a time are replicated: {job.data} devices do not divide "
            "them"
        )
        even = max(prompts // job.data, 1) * job.data
        if even <= job.training.questions_per_step:
            line += f"; training.decode_batch={samples * even} would be sharded"
        found.append(line)
    if job.cfg.num_kv_heads % job.model_axis:
        found.append(
            f"the cache of {job.cfg.num_kv_heads} key/value heads is replicated: "
            f"{job.model_axis} devices do not divide them"
        )
    return found
