"""Whether a run fits, and the nearest change of its settings that makes it fit."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from pmc_jax.planning.devices import Topology
from pmc_jax.planning.programs import PHASES, Job, Program, compile_phase, least_bytes

Change = dict[str, Any]
"""Settings by their keys on the command line."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """One plan: settings that differ from the run's, and what was compiled for it.

    `fits` is None where the memory is not known.
    """

    change: Change
    job: Job
    programs: tuple[Program, ...]
    fits: bool | None

    def line(self) -> str:
        """The change as it is typed."""
        return " ".join(f"{key}={value}" for key, value in self.change.items())


def changed(job: Job, change: Change) -> Job:
    """The job with other settings."""
    for key, value in change.items():
        group, _, name = key.partition(".")
        if key == "mesh":
            data, model_axis = (int(n) for n in value.split("x"))
            job = dataclasses.replace(job, data=data, model_axis=model_axis)
        elif key == "model.remat":
            job = dataclasses.replace(job, remat=value)
        elif group == "training":
            job = dataclasses.replace(job, batch=dataclasses.replace(job.batch, **{name: value}))
        else:
            optimizer = dataclasses.replace(job.optimizer, **{name: value})
            job = dataclasses.replace(job, optimizer=optimizer)
    return job


def other_remat(job: Job) -> list[Change]:
    """Policies that keep less."""
    policies = ("none", "dots", "full")
    return [{"model.remat": name} for name in policies[policies.index(job.remat) + 1 :]]


def fewer_rows(job: Job) -> list[Change]:
    """Half as many decoded responses, and again half; prompts that the mesh divides evenly."""
    samples, found = job.pmc.samples, []
    prompts = max(1, job.batch.rows // samples)
    for part in (1, 2, 4, 8):
        even = prompts // part // job.data * job.data
        rows = samples * even
        if 0 < rows < job.batch.rows and {"training.rows": rows} not in found:
            found.append({"training.rows": rows})
    return found


def smaller_parts(job: Job) -> list[Change]:
    """Smaller micro-batches and more of them: the same optimizer batch."""
    size, count = job.batch.batch_size, job.batch.accumulation
    return [
        {"training.batch_size": size // part, "training.accumulation": count * part}
        for part in (2, 4, 8)
        if size % part == 0
    ]


def other_meshes(job: Job) -> list[Change]:
    """The same devices laid out otherwise, the most alike first."""
    count = job.data * job.model_axis
    axes = [m for m in range(1, count + 1) if count % m == 0 and job.cfg.num_heads % m == 0]
    axes.sort(key=lambda m: abs(math.log2(m / job.model_axis)))
    return [{"mesh": f"{count // m}x{m}"} for m in axes if m != job.model_axis]


def narrower(job: Job) -> list[Change]:
    """bfloat16 for gradients, for moments, for both; changes the numbers a little."""
    gradients: Change = {"training.gradient_dtype": "bfloat16"}
    moments: Change = {"optimizer.moment_dtype": "bfloat16"}
    return [gradients, moments, {**gradients, **moments}]


def alternatives(job: Job, failing: Sequence[str]) -> Iterator[Change]:
    """What to try, the nearest first: single changes, then several.

    Whatever leaves the numbers alone comes before what rounds them.
    """
    train = other_remat(job) if "train" in failing else []
    rows = fewer_rows(job) if {"sample", "answer"} & set(failing) else []
    parts = smaller_parts(job) if "train" in failing else []
    exact = [*train, *rows, *other_meshes(job), *parts]
    yield from exact
    least: Change = {**(train[-1] if train else {}), **(rows[-1] if rows else {})}
    meshes = [{}, *other_meshes(job)]
    for mesh in meshes:
        within = changed(job, mesh)
        few = fewer_rows(within)[-1:] if rows else []
        for more in ({}, *(few or []), *parts[:1]):
            yield {**least, **mesh, **more}
    for dtypes in narrower(job):
        yield dtypes
    for dtypes in narrower(job):
        for mesh in meshes:
            few = fewer_rows(changed(job, mesh))[-1:] if rows else [{}]
            yield {**least, **mesh, **(few[0] if few else {}), **dtypes}


def compiled_outcome(
    job: Job,
    change: Change,
    topology: Topology,
    phases: Sequence[str],
    say: Callable[[str], None],
    *,
    whole: bool,
) -> Outcome:
    """Compile phases of a job; unless `whole`, only up to the first that does not fit."""
    mesh = topology.mesh(job.data, job.model_axis)
    programs: list[Program] = []

    def on_program(program: Program) -> None:
        programs.append(program)
        say(f"{program.name}: {program.seconds:.0f} s to compile")

    fits: bool | None = None if topology.memory is None else True
    for phase in phases:
        compile_phase(job, phase, mesh, on_program)
        if any(too_large(program, topology) for program in programs):
            fits = False
            if not whole:
                break
    return Outcome(change, job, tuple(programs), fits)


def too_large(program: Program, topology: Topology) -> bool:
    """Whether a program does not fit a device."""
    if program.refused:
        return True
    return topology.memory is not None and program.peak > topology.memory


def failing_phases(outcome: Outcome, topology: Topology) -> list[str]:
    """The phases with a program that does not fit."""
    return [
        phase
        for phase in PHASES
        if any(p.name.startswith(phase) and too_large(p, topology) for p in outcome.programs)
    ]


def nearest_that_fits(
    outcome: Outcome, topology: Topology, tries: int, say: Callable[[str], None]
) -> tuple[Outcome | None, list[Outcome]]:
    """The first alternative that fits, and all that were compiled, at most `tries`.

    What could not fit whatever its temporaries is passed over without compiling.
    """
    failing = failing_phases(outcome, topology)
    order = [*failing, *(phase for phase in PHASES if phase not in failing)]
    tried: list[Outcome] = []
    seen: list[Change] = [{}]
    for change in alternatives(outcome.job, failing):
        if change in seen:
            continue
        seen.append(change)
        job = changed(outcome.job, change)
        mesh = topology.mesh(job.data, job.model_axis)
        assert topology.memory is not None
        if any(least_bytes(job, phase, mesh) > topology.memory for phase in PHASES):
            continue
        if len(tried) == tries:
            break
        found = compiled_outcome(job, change, topology, order, lambda _: None, whole=False)
        tried.append(found)
        say(f"{found.line()}: {'fits' if found.fits else 'does not fit'}")
        if found.fits:
            return found, tried
    return None, tried
