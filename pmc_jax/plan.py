"""Check whether a run fits on devices that this machine need not have: `pmc plan`.

Compiles the training and decoding steps of a PMC run for these devices and prints the memory
that each needs. Reads no weights and runs nothing.
"""

import dataclasses
import time
from pathlib import Path

import jax
import jax.numpy as jnp

from pmc_jax.cli.config import PlanConfig
from pmc_jax.cli.entry_point import entry_point
from pmc_jax.data.files import write_json
from pmc_jax.errors import UserError
from pmc_jax.evaluation import EvaluationConfig
from pmc_jax.language_model import planned_config, resolved, weights_dtype
from pmc_jax.model import auto_layout, mesh_layout, param_count
from pmc_jax.model.buckets import bucket_length
from pmc_jax.model.memory import MOST_ROWS, rows_at_once
from pmc_jax.model.selection import as_list
from pmc_jax.model.trainable import trainable
from pmc_jax.planning.devices import Topology, find_topology
from pmc_jax.planning.page import at_a_time, memory_table, outcome_json, uneven, work_table
from pmc_jax.planning.phases import (
    PHASES,
    Asked,
    Job,
    answering_bytes,
    base_weights,
    drawn_by,
    footprint_of,
    longest_prompt,
    shard_bytes,
)
from pmc_jax.planning.search import (
    Attempt,
    Change,
    Outcome,
    compile_all,
    nearest_that_fits,
    typed,
)
from pmc_jax.settings import AUTO, flat
from pmc_jax.text.counts import counted
from pmc_jax.training.sizes import Lengths, sizes
from pmc_jax.unlearning.schedule import Training


def job_of(config: PlanConfig, topology: Topology) -> Job:
    """The planned run.

    Raises:
        UserError: for a method that samples nothing, or settings that do not go together.
    """
    if config.method.drawn is None:
        raise UserError(f"method={config.method.name}: expected a method that samples, such as pmc")
    if config.prompt_tokens > config.training.max_length - 2:
        raise UserError(
            f"prompt_tokens={config.prompt_tokens}: expected at most "
            f"{config.training.max_length - 2}, which leaves two tokens of training.max_length "
            "for a response"
        )
    model, count = planned_config(config.model), len(topology.devices)
    dtype = resolved(config.model).dtype
    if config.mesh == "auto":
        data, axis = auto_layout(count, topology.memory, model, dtype)
    else:
        data, axis = mesh_layout(config.mesh)
        if data * axis != count:
            found = counted(count, "device", "devices")
            raise UserError(f"mesh={config.mesh}: {topology.name} has {found}")
    job = Job(
        cfg=model,
        dtype=dtype,
        weights_dtype=weights_dtype(dtype),
        remat=config.model.remat,
        method=config.method,
        training=hashable(config.training),
        optimizer=config.optimizer,
        data=data,
        model_axis=axis,
        prompt_tokens=config.prompt_tokens,
        part=trainable(model, config.training.only, config.adapter),
    )
    return sized(job, topology, config.evaluation)


def hashable(training: Training) -> Training:
    """The same settings, with a tuple in place of a list."""
    only = training.only
    return training if only is None else dataclasses.replace(training, only=tuple(as_list(only)))


def sized(job: Job, topology: Topology, evaluation: EvaluationConfig) -> Job:
    """The job with numbers in place of "auto", as a run on such devices chooses them."""
    model = footprint_of(job, topology.backend)
    most, drawn = job.training.max_length, drawn_by(job)
    prompts = [most] * job.training.questions_per_step
    answers_trained = prompts * job.method.answers_per_question
    room = min(most - job.prompt_tokens - 1, drawn.max_new_tokens or most)
    retain = prompts * job.method.retain_pairs
    lengths = Lengths(longest_prompt(job), room, answers_trained, retain)
    width, time_ = bucket_length(job.prompt_tokens), bucket_length(room)
    free = beside = topology.memory
    if topology.memory is not None:
        wide = jnp.dtype(job.weights_dtype).itemsize
        moments = 2 * jnp.dtype(job.optimizer.moment_dtype or job.weights_dtype).itemsize
        mesh = topology.mesh(job.data, job.model_axis)
        base = shard_bytes(base_weights(job, mesh))
        free = topology.memory - base - model.trained(wide + moments)
        beside = topology.memory - sum(answering_bytes(job, mesh))
    found = sizes(
        job.training, job.method, lengths, model, free, kinds=job.method.answers_per_question,
        remat=job.remat,
        update_norm=False, weights_dtype=job.weights_dtype,
    )  # fmt: skip
    answers: int | None = None
    attack: Asked | None = None
    if job.training.decode_batch == AUTO:
        answers, _ = rows_at_once(
            model, beside, prompts=MOST_ROWS * job.data, samples=1, width=width, time=time_,
            filters=False,
        )  # fmt: skip
    if samples := evaluation.attack_samples:
        sampling = evaluation.attack
        if isinstance(evaluation.decode_batch, int):
            at_once = max(1, evaluation.decode_batch // samples), samples
        else:
            at_once = rows_at_once(
                model, beside, prompts=MOST_ROWS * job.data, samples=samples, width=width,
                time=time_, filters=sampling.top_k > 0 or sampling.top_p < 1,
            )  # fmt: skip
        attack = Asked(*at_once, sampling)
    training = dataclasses.replace(job.training, **found)
    return dataclasses.replace(job, training=training, answer_batch=answers, attack=attack)


def show(outcome: Outcome, topology: Topology) -> None:
    """Print the tables of a plan."""
    print(f"\n{at_a_time(outcome.job)}")
    for table in (memory_table(outcome, topology), work_table(outcome), uneven(outcome.job)):
        print("\n" + "\n".join(table) if table else "", flush=True)


def plan(config: PlanConfig) -> None:
    """Compile the run, print what it needs, and look for settings that fit."""
    # Code for other devices cannot run here, so a cache of it is of no use.
    jax.config.update("jax_enable_compilation_cache", False)
    topology = find_topology(config.topology, config.memory)
    job, started = job_of(config, topology), time.perf_counter()
    memory = f"{topology.memory / 1e9:.1f} GB each" if topology.memory else "memory not given"
    print(
        f"{config.name}: {param_count(job.cfg):,} parameters on {topology.name} ({memory}) "
        f"as {job.data}x{job.model_axis}"
    )
    if not topology.exact:
        print(
            "compiled with XLA's CPU compiler, temporaries within the bound of auto: those of a "
            "GPU may differ"
        )

    def say(text: str) -> None:
        print(f"[{time.perf_counter() - started:.0f} s] {text}", flush=True)

    outcome = compile_all(job, topology, PHASES, say)
    show(outcome, topology)
    nearest: tuple[Change, Outcome] | None = None
    attempts: list[Attempt] = []
    if outcome.fits is None:
        print("\nno verdict: the memory of a device is unknown; give, say, memory=80GB")
    elif outcome.fits:
        print("\nfits")
    else:
        print("\ndoes not fit; trying other settings …", flush=True)
        nearest, attempts = nearest_that_fits(outcome, topology, config.tries, say)
        if nearest is None:
            tried = counted(len(attempts), "alternative", "alternatives")
            print(f"found nothing that fits; compiled {tried}")
        else:
            show(nearest[1], topology)
            print(f"\nfits with {typed(nearest[0])}")
    if config.out:
        result = {
            "topology": topology.name,
            "devices": len(topology.devices),
            "memory": topology.memory,
            "exact_compiler": topology.exact,
            "parameters": param_count(job.cfg),
            **outcome_json(outcome),
            "nearest": nearest and {"change": nearest[0], **outcome_json(nearest[1])},
            "attempts": [dataclasses.asdict(attempt) for attempt in attempts],
            "settings": flat(config),
        }
        write_json(Path(config.out), result)
        print(f"Numbers: {config.out}")


main = entry_point(plan, "plan", PlanConfig)

if __name__ == "__main__":
    main()
