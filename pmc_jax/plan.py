"""Plan a run: `python -m pmc_jax.plan experiment=… topology=v5e:2x4 [key=value …]`.

Compiles the train step and the decoding of a PMC run for devices that need not be there, says
what they would hold, and whether that fits. Reads no weights, and runs nothing.
"""

import dataclasses
import time
from pathlib import Path

import jax

from pmc_jax.cli.config import PlanConfig
from pmc_jax.cli.entry_point import entry_point
from pmc_jax.data.files import write_json
from pmc_jax.errors import UserError
from pmc_jax.model import auto_layout, mesh_layout, param_count
from pmc_jax.model.language_model import planned_config, weights_dtype
from pmc_jax.planning.devices import Topology, find_topology
from pmc_jax.planning.page import memory_table, outcome_json, uneven, work_table
from pmc_jax.planning.phases import PHASES, Job
from pmc_jax.planning.search import (
    Attempt,
    Change,
    Outcome,
    compile_all,
    nearest_that_fits,
    typed,
)
from pmc_jax.settings import flat


def job_of(cfg: PlanConfig, topology: Topology) -> Job:
    """The run that is planned."""
    if cfg.method.drawn is None:
        raise UserError(f"method={cfg.method.name}: expected a method that samples, such as pmc")
    if cfg.prompt_tokens > cfg.training.max_length - 2:
        raise UserError(
            f"prompt_tokens={cfg.prompt_tokens}: expected at most {cfg.training.max_length - 2}, "
            "so that a response fits training.max_length"
        )
    model, count = planned_config(cfg.model), len(topology.devices)
    if cfg.mesh == "auto":
        data, axis = auto_layout(count, topology.memory, model, cfg.model.dtype)
    else:
        data, axis = mesh_layout(cfg.mesh)
        if data * axis != count:
            raise UserError(f"mesh={cfg.mesh}: {topology.name} has {count} devices")
    return Job(
        cfg=model,
        dtype=cfg.model.dtype,
        weights_dtype=weights_dtype(cfg.model.dtype),
        remat=cfg.model.remat,
        method=cfg.method,
        training=cfg.training,
        optimizer=cfg.optimizer,
        data=data,
        model_axis=axis,
        prompt_tokens=cfg.prompt_tokens,
    )


def show(outcome: Outcome, topology: Topology) -> None:
    """Print the tables of a plan."""
    for table in (memory_table(outcome, topology), work_table(outcome), uneven(outcome.job)):
        print("\n" + "\n".join(table) if table else "", flush=True)


def plan(cfg: PlanConfig) -> None:
    """One whole plan."""
    # What is compiled here cannot run here, and is read as text.
    jax.config.update("jax_enable_compilation_cache", False)
    topology = find_topology(cfg.topology, cfg.memory)
    job, started = job_of(cfg, topology), time.perf_counter()
    memory = f"{topology.memory / 1e9:.1f} GB each" if topology.memory else "memory not given"
    print(
        f"{cfg.name}: {param_count(job.cfg):,} parameters on {topology.name} ({memory}) "
        f"as {job.data}x{job.model_axis}"
    )
    if not topology.exact:
        print("compiled by XLA's CPU compiler: a GPU's temporaries may differ")

    def say(text: str) -> None:
        print(f"[{time.perf_counter() - started:.0f} s] {text}", flush=True)

    outcome = compile_all(job, topology, PHASES, say)
    show(outcome, topology)
    nearest: tuple[Change, Outcome] | None = None
    attempts: list[Attempt] = []
    if outcome.fits is None:
        print("\nno verdict: give memory=80GB to get one")
    elif outcome.fits:
        print("\nfits")
    else:
        print("\ndoes not fit; trying other settings …", flush=True)
        nearest, attempts = nearest_that_fits(outcome, topology, cfg.tries, say)
        if nearest is None:
            print(f"nothing that fits was found; {len(attempts)} alternatives compiled")
        else:
            show(nearest[1], topology)
            print(f"\nfits with {typed(nearest[0])}")
    if cfg.out:
        result = {
            "topology": topology.name,
            "devices": len(topology.devices),
            "memory": topology.memory,
            "exact_compiler": topology.exact,
            "parameters": param_count(job.cfg),
            **outcome_json(outcome),
            "nearest": nearest and {"change": nearest[0], **outcome_json(nearest[1])},
            "attempts": [dataclasses.asdict(attempt) for attempt in attempts],
            "settings": flat(cfg),
        }
        write_json(Path(cfg.out), result)
        print(f"Numbers: {cfg.out}")


main = entry_point(plan, "plan", PlanConfig)

if __name__ == "__main__":
    main()
