"""Whether a run fits, and the smallest change of its settings with which it fits."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any

from pmc_jax.model.kernels.dispatch import without_kernels
from pmc_jax.planning.devices import Topology
from pmc_jax.planning.phases import (
    Compiled,
    Job,
    answers_at_once,
    bounded,
    compile_phase,
    drawn_by,
    least_bytes,
)

Change = dict[str, Any]
"""Settings by their keys on the command line."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The compiled functions of a job, and whether they fit; None if the memory is unknown."""

    job: Job
    functions: tuple[Compiled, ...]
    fits: bool | None


@dataclasses.dataclass(frozen=True)
class Attempt:
    """A change with which some phases were compiled, and whether they fit."""

    change: Change
    phases: tuple[str, ...]
    fits: bool


def typed(change: Change) -> str:
    """A change as it is typed on the command line."""
    return " ".join(f"{key}={value}" for key, value in change.items())


def changed(job: Job, change: Change) -> Job:
    """The job with changed settings."""
    for key, value in change.items():
        group, _, name = key.partition(".")
        if key == "mesh":
            data, model_axis = (int(n) for n in value.split("x"))
            job = dataclasses.replace(job, data=data, model_axis=model_axis)
        elif key == "model.remat":
            job = dataclasses.replace(job, remat=value)
        elif group == "training":
            training = dataclasses.replace(job.training, **{name: value})
            answers = None if name == "decode_batch" else job.answer_batch
            job = dataclasses.replace(job, training=training, answer_batch=answers)
        else:
            optimizer = dataclasses.replace(job.optimizer, **{name: value})
            job = dataclasses.replace(job, optimizer=optimizer)
    return job


def other_remat(job: Job) -> list[Change]:
    """Rematerialisation policies that keep less."""
    policies = ("none", "dots", "full")
    return [{"model.remat": name} for name in policies[policies.index(job.remat) + 1 :]]


def fewer_rows(job: Job) -> list[Change]:
    """Fewer responses decoded at a time: a half, a quarter, an eighth.

    The mesh divides the number of prompts evenly.
    """
    samples, found = drawn_by(job).samples, []
    prompts = job.training.sampled_at_once(samples)
    for part in (1, 2, 4, 8):
        even = prompts // part // job.data * job.data
        rows = samples * even
        if 0 < rows < answers_at_once(job) and {"training.decode_batch": rows} not in found:
            found.append({"training.decode_batch": rows})
    return found


def other_parts(job: Job) -> list[Change]:
    """The same optimizer batch in more and smaller micro-batches, or in one.

    A single micro-batch needs no memory for a sum of gradients.
    """
    size, count = job.training.part_size, job.training.parts
    sizes = [size // part for part in (2, 4, 8) if size % part == 0]
    sizes += [job.training.questions_per_step] if count > 1 else []
    return [{"training.micro_batch": one} for one in sizes]


def other_meshes(job: Job) -> list[Change]:
    """Other layouts of the same devices, those most like this one first."""
    count = job.data * job.model_axis
    axes = [m for m in range(1, count + 1) if count % m == 0 and job.cfg.num_heads % m == 0]
    axes.sort(key=lambda m: abs(math.log2(m / job.model_axis)))
    return [{"mesh": f"{count // m}x{m}"} for m in axes if m != job.model_axis]


def bfloat16_instead(job: Job) -> list[Change]:
    """bfloat16 for gradients, for moments, for both. This changes the results slightly."""
    gradients: Change = {"training.gradient_dtype": "bfloat16"}
    moments: Change = {"optimizer.moment_dtype": "bfloat16"}
    return [gradients, moments, {**gradients, **moments}]


def too_large(function: Compiled, topology: Topology) -> bool:
    """Whether a function does not fit a device."""
    if function.refused:
        return True
    return topology.memory is not None and function.peak > topology.memory


Say = Callable[[str], None]


def compile_all(job: Job, topology: Topology, phases: Sequence[str], say: Say) -> Outcome:
    """Compile phases of a job and compare them with the memory of a device."""
    mesh = topology.mesh(job.data, job.model_axis)
    functions: list[Compiled] = []

    def on_compiled(function: Compiled) -> None:
        if topology.backend == "gpu":
            function = bounded(function, job, "gpu")
        functions.append(function)
        say(f"{function.name} compiled in {function.seconds:.0f} s")

    with without_kernels() if topology.backend == "gpu" else nullcontext():
        for phase in phases:
            compile_phase(job, phase, mesh, on_compiled)
    fits = not any(too_large(function, topology) for function in functions)
    return Outcome(job, tuple(functions), None if topology.memory is None else fits)


PARTS: tuple[tuple[str, ...], ...] = (("train",), ("sample", "answer", "attack"))
"""Groups of phases: a change that makes one group fit does not affect the other."""


def options(job: Job, phases: Sequence[str]) -> list[Change]:
    """Changes that alter results by rounding alone, the smallest first."""
    if "train" not in phases:
        return [{}, *fewer_rows(job)]
    remat = other_remat(job)
    least = remat[-1] if remat else {}
    return [{}, *remat, *({**least, **parts} for parts in other_parts(job))]


def bases(job: Job) -> Iterator[Change]:
    """Changes that affect every phase: none, another mesh, bfloat16, both."""
    meshes: list[Change] = [{}, *other_meshes(job)]
    for dtypes in ({}, *bfloat16_instead(job)):
        for mesh in meshes:
            yield {**mesh, **dtypes}


class Budget(Exception):
    """Raised when `tries` alternatives have been compiled."""


@dataclasses.dataclass
class Search:
    """A search for the smallest change with which a job fits.

    Attributes:
        tries: how many alternatives may still be compiled.
        attempts: those compiled so far.
        known: the outcomes so far, by job and phases.
    """

    topology: Topology
    tries: int
    say: Say
    attempts: list[Attempt]
    known: dict[tuple[Job, tuple[str, ...]], Outcome]

    def outcome(self, job: Job, change: Change, phases: tuple[str, ...]) -> Outcome | None:
        """The outcome of some phases with a change, if they fit."""
        new = changed(job, change)
        mesh = self.topology.mesh(new.data, new.model_axis)
        assert self.topology.memory is not None
        if any(least_bytes(new, phase, mesh) > self.topology.memory for phase in phases):
            return None  # even without temporaries
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
        """The first change with which all phases fit, and its outcome."""
        for base in bases(job):
            change: Change = base
            functions: list[Compiled] = []
            for phases in PARTS:
                choices = ({**base, **one} for one in options(changed(job, base), phases))
                fitting = ((one, self.outcome(job, one, phases)) for one in choices)
                one, found = next(((a, b) for a, b in fitting if b), ({}, None))
                if found is None:
                    break
                change, functions = {**change, **one}, [*functions, *found.functions]
            else:
                return change, Outcome(changed(job, change), tuple(functions), True)
        return None


def nearest_that_fits(
    outcome: Outcome, topology: Topology, tries: int, say: Say
) -> tuple[tuple[Change, Outcome] | None, list[Attempt]]:
    """The smallest change with which a job fits, and the alternatives compiled to find it.

    A change that cannot fit even without temporaries is not compiled.
    """
    known: dict[tuple[Job, tuple[str, ...]], Outcome] = {}
    for phases in PARTS:
        own = tuple(p for p in outcome.functions if p.name.startswith(phases))
        fits = not any(too_large(function, topology) for function in own)
        known[outcome.job, phases] = Outcome(outcome.job, own, fits)
    search = Search(topology, tries, say, [], known)
    try:
        return search.nearest(outcome.job), search.attempts
    except Budget:
        return None, search.attempts
