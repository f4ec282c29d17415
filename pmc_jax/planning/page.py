"""A plan as a table to read and as JSON."""

import dataclasses
from typing import Any

from pmc_jax.model import param_count
from pmc_jax.planning.devices import Topology
from pmc_jax.planning.programs import Job, Program, drawn_by
from pmc_jax.planning.search import Outcome, too_large

KINDS = (
    "params", "moments", "gradients", "decoding params", "cache", "logits", "temporaries",
)  # fmt: skip


def gigabytes(size: float) -> str:
    """`12.34`: in 10⁹ bytes."""
    return f"{size / 1e9:.2f}"


def tokens_of(job: Job, program: Program) -> int:
    """Tokens that go through the model in one execution; 0 where there is no model in it."""
    batch = job.training
    if program.name == "train step":
        per_step = batch.questions_per_step * (1 + job.method.retain_pairs)
        return per_step * batch.max_length
    if program.name.endswith(": decode"):
        samples = drawn_by(job).samples
        sampling = program.name.startswith("sample")
        return batch.sampled_at_once(samples) * samples if sampling else batch.rows
    return 0


def model_flops(job: Job, program: Program) -> int:
    """6·N a trained token and 2·N a decoded one, for N weights (Kaplan et al. 2020)."""
    factor = 6 if program.name == "train step" else 2
    return factor * param_count(job.cfg) * tokens_of(job, program)


def program_json(job: Job, program: Program) -> dict[str, Any]:
    """What is known about a program."""
    return {**dataclasses.asdict(program), "model_flops": model_flops(job, program)}


def outcome_json(outcome: Outcome) -> dict[str, Any]:
    """A plan and its programs."""
    job = outcome.job
    return {
        "fits": outcome.fits,
        "mesh": f"{job.data}x{job.model_axis}",
        "remat": job.remat,
        "training": dataclasses.asdict(job.training),
        "optimizer": dataclasses.asdict(job.optimizer),
        "programs": [program_json(job, program) for program in outcome.programs],
    }


def memory_table(outcome: Outcome, topology: Topology) -> list[str]:
    """A line a program: GB on each device by kind, and their sum."""
    head = ["GB per device", *KINDS, "peak", ""]
    rows = [head]
    for program in outcome.programs:
        cells = [gigabytes(program.bytes[k]) if k in program.bytes else "" for k in KINDS]
        verdict = ""
        if topology.memory is not None:
            share = f"{100 * program.peak / topology.memory:.0f}%"
            verdict = "too large" if too_large(program, topology) else share
        rows.append([program.name, *cells, gigabytes(program.peak), verdict])
    return aligned(rows)


def work_table(outcome: Outcome) -> list[str]:
    """A line a program: FLOPs of all devices, and GB that each device receives."""
    rows = [["per execution", "matmul TFLOPs", "model TFLOPs", "collectives: GB per device"]]
    for program in outcome.programs:
        if not program.matmul_flops:
            continue
        moved = ", ".join(f"{kind} {gigabytes(n)}" for kind, n in program.collectives.items())
        wanted = model_flops(outcome.job, program)
        rows.append(
            [
                program.name,
                f"{program.matmul_flops / 1e12:.2f}",
                f"{wanted / 1e12:.2f}" if wanted else "",
                moved or "none",
            ]
        )
    return aligned(rows)


def aligned(rows: list[list[str]]) -> list[str]:
    """Columns under each other, the first one and the last to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    last = len(widths) - 1
    return [
        "  ".join(
            cell.ljust(width) if place in (0, last) else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def uneven(job: Job) -> list[str]:
    """What the mesh does not divide, so that it is replicated on every device."""
    found = []
    rows = job.training.batch_size * (1 + job.method.retain_pairs)
    if rows % job.data:
        found.append(
            f"a micro-batch of {rows} rows is not sharded over {job.data} devices: every device computes "
            "all of it"
        )
    samples = drawn_by(job).samples
    prompts = job.training.sampled_at_once(samples)
    if prompts % job.data:
        better = samples * (prompts // job.data * job.data or job.data)
        found.append(
            f"{prompts} prompts decoded at a time are not sharded over {job.data} devices: every device "
            f"decodes all of them; training.rows={better} would be sharded"
        )
    if job.cfg.num_kv_heads % job.model_axis:
        found.append(
            f"{job.cfg.num_kv_heads} key/value heads are not sharded over {job.model_axis} devices: every "
            "device holds their whole cache"
        )
    return found
