"""Whether a run fits, and the nearest change of its settings that makes it fit."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from pmc_jax.planning.devices import Topology
from pmc_jax.planning.programs import Job, Program, compile_phase, drawn_by, least_bytes

Change = dict[str, Any]
"""Settings by their keys on the command line."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What was compiled for a job, and whether it fits; None where the memory is not known."""

    job: Job
    programs: tuple[Program, ...]
    fits: bool | None


@dataclasses.dataclass(frozen=True)
class Attempt:
    """A change that was compiled for some phases, and whether they fit with it."""

    change: Change
    phases: tuple[str, ...]
    fits: bool


def typed(change: Change) -> str:
    """A change as it is typed."""
    return " ".join(f"{key}={value}" for key, value in change.items())


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
            training = dataclasses.replace(job.training, **{name: value})
            job = dataclasses.replace(job, training=training)
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
    samples, found = drawn_by(job).samples, []
    prompts = job.training.sampled_at_once(samples)
    for part in (1, 2, 4, 8):
        even = prompts // part // job.data * job.data
        rows = samples * even
        if 0 < rows < job.training.rows and {"training.rows": rows} not in found:
            found.append({"training.rows": rows})
    return found


def other_parts(job: Job) -> list[Change]:
    """The same optimizer batch in more and smaller micro-batches, or in one.

    One alone has no sum of gradients beside its own.
    """
    size, count = job.training.batch_size, job.training.accumulation
    sizes = [size // part for part in (2, 4, 8) if size % part == 0]
    sizes += [size * count] if count > 1 else []
    return [
        {"training.batch_size": one, "training.accumulation": size * count // one} for one in sizes
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


def too_large(program: Program, topology: Topology) -> bool:
    """Whether a program does not fit a device."""
    if program.refused:
        return True
    return topology.memory is not None and program.peak > topology.memory


Say = Callable[[str], None]


def compile_all(job: Job, topology: Topology, phases: Sequence[str], say: Say) -> Outcome:
    """Compile some phases of a job."""
    mesh = topology.mesh(job.data, job.model_axis)
    programs: list[Program] = []

    def on_program(program: Program) -> None:
        programs.append(program)
        say(f"{program.name} compiled in {program.seconds:.0f} s")

    for phase in phases:
        compile_phase(job, phase, mesh, on_program)
    fits = not any(too_large(program, topology) for program in programs)
    return Outcome(job, tuple(programs), None if topology.memory is None else fits)


PARTS: tuple[tuple[str, ...], ...] = (("train",), ("sample", "answer"))
"""Phases that the same settings change: what makes one of them fit leaves the other alone."""


def options(job: Job, phases: Sequence[str]) -> list[Change]:
    """Changes that leave the numbers alone, but for rounding, the nearest first."""
    if "train" not in phases:
        return [{}, *fewer_rows(job)]
    remat = other_remat(job)
    least = remat[-1] if remat else {}
    return [{}, *remat, *({**least, **parts} for parts in other_parts(job))]


def bases(job: Job) -> Iterator[Change]:
    """Changes that concern every phase: none, another mesh, narrower dtypes, both."""
    meshes: list[Change] = [{}, *other_meshes(job)]
    for dtypes in ({}, *narrower(job)):
        for mesh in meshes:
            yield {**mesh, **dtypes}


class Budget(Exception):
    """As many alternatives as were allowed have been compiled."""


@dataclasses.dataclass
class Search:
    """Looks for the nearest change with which a job fits.

    Attributes:
        tries: attempts that may still be compiled.
        attempts: those made so far.
        known: whether phases of a job fit.
    """

    topology: Topology
    tries: int
    say: Say
    attempts: list[Attempt]
    known: dict[tuple[Job, tuple[str, ...]], Outcome]

    def outcome(self, job: Job, change: Change, phases: tuple[str, ...]) -> Outcome | None:
        """The phases as compiled, if they fit."""
        new = changed(job, change)
        mesh = self.topology.mesh(new.data, new.model_axis)
        assert self.topology.memory is not None
        if any(least_bytes(new, phase, mesh) > self.topology.memory for phase in phases):
            return None  # whatever its temporaries
        if (new, phases) not in self.known:
            if self.tries == 0:
                raise Budget
            self.tries -= 1
            found = compile_all(new, self.topology, phases, lambda _: None)
            self.known[new, phases] = found
            self.attempts.append(Attempt(change, phases, bool(found.fits)))
            self.say(f"{typed(change)}: {phases[0]} {'fits' if found.fits else 'does not fit'}")
        found = self.known[new, phases]
        return found if found.fits else None

    def nearest(self, job: Job) -> tuple[Change, Outcome] | None:
        """The first of all changes that fits, with its programs."""
        for base in bases(job):
            change: Change = base
            programs: list[Program] = []
            for phases in PARTS:
                choices = ({**base, **one} for one in options(changed(job, base), phases))
                fitting = ((one, self.outcome(job, one, phases)) for one in choices)
                one, found = next(((a, b) for a, b in fitting if b), ({}, None))
                if found is None:
                    break
                change, programs = {**change, **one}, [*programs, *found.programs]
            else:
                return change, Outcome(changed(job, change), tuple(programs), True)
        return None


def nearest_that_fits(
    outcome: Outcome, topology: Topology, tries: int, say: Say
) -> tuple[tuple[Change, Outcome] | None, list[Attempt]]:
    """The nearest change with which a job fits that does not, and what was compiled to find it.

    What could not fit whatever its temporaries is passed over without compiling.
    """
    known: dict[tuple[Job, tuple[str, ...]], Outcome] = {}
    for phases in PARTS:
        own = tuple(p for p in outcome.programs if p.name.startswith(phases))
        fits = not any(too_large(program, topology) for program in own)
        known[outcome.job, phases] = Outcome(outcome.job, own, fits)
    search = Search(topology, tries, say, [], known)
    try:
        return search.nearest(outcome.job), search.attempts
    except Budget:
        return None, search.attempts
