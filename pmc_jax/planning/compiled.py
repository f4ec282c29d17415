"""Collectives and matrix products of a compiled function."""

import dataclasses
import math
import re
from typing import Any

from jax.extend.core import jaxprs_in_params

KINDS = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute"

BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "s64": 8, "u64": 8,
         "f64": 8}  # fmt: skip
"""Bytes of an element of each dtype; other dtypes have 4."""


@dataclasses.dataclass(frozen=True)
class Collective:
    """A collective in a compiled function.

    Attributes:
        kind: XLA's name of it.
        shape, bytes: of its result on one device.
        depth: the number of loops around it; -1 if it never runs.
        times: how often it runs in these loops.
    """

    kind: str
    shape: tuple[int, ...]
    bytes: int
    depth: int
    times: int


def trip_count(line: str, bodies: dict[str, str], condition: str) -> int:
    """How often a loop runs: XLA's note, or else the constant in the loop's condition."""
    if noted := re.search(r'"known_trip_count":\{"n":"(\d+)"', line):
        return int(noted[1])
    text = bodies.get(condition, "")
    for callee in re.findall(r"calls=%?([\w.\-]+)", text):
        text += bodies.get(callee, "")
    bounds = {int(n) for n in re.findall(r"= s32\[\]\S* constant\((\d+)\)", text)}
    return bounds.pop() if len(bounds) == 1 else 1


def loops_of(text: str, bodies: dict[str, str]) -> dict[str, tuple[int, int, str]]:
    """For each computation: how many loops are around it, how often it runs, the innermost body."""
    (entry,) = re.findall(r"^ENTRY %?([\w.\-]+) ", text, re.M)
    found = {entry: (0, 1, entry)}
    waiting = [entry]
    while waiting:
        name = waiting.pop()
        depth, times, around = found[name]
        for line in bodies[name].splitlines():
            calls = re.findall(r"(body|condition|to_apply|calls)=%?([\w.\-]+)", line)
            named = dict(calls)
            for kind, callee in calls:
                if callee not in bodies or callee in found:
                    continue
                if kind == "body":
                    trips = trip_count(line, bodies, named.get("condition", ""))
                    found[callee] = (depth + 1, times * trips, callee)
                else:
                    found[callee] = (depth, times, around)
                waiting.append(callee)
    return found


def collectives(text: str) -> list[Collective]:
    """Every collective of a compiled function, from its text.

    TPU compilers name an asynchronous collective several times, with the same channel.
    """
    bodies = dict(re.findall(r"^(?:ENTRY )?%?([\w.\-]+) \(.*?\{\n(.*?)^\}", text, re.S | re.M))
    loops = loops_of(text, bodies)
    found: list[Collective] = []
    seen: set[tuple[str, str, str, str]] = set()
    for name, body in bodies.items():
        depth, times, around = loops.get(name, (-1, 0, name))
        for line in body.splitlines():
            match = re.search(rf"= (.+?) ({KINDS})(-start)?\(", line)
            if match is None:
                continue
            result, kind, started = match.groups()
            arrays = re.findall(r"(\w+)\[([\d,]*)\]", result)
            channel = re.search(r"channel_id=(\d+)", line)
            key = (around, kind, str(arrays), channel[1] if channel else line)
            if "chain_id" in line and key in seen:
                continue
            seen.add(key)
            if started and kind != "all-reduce":
                arrays = arrays[len(arrays) // 2 :]  # operands come before results
            for dtype, sizes in arrays:
                shape = tuple(int(n) for n in sizes.split(",") if n)
                size = math.prod(shape) * BYTES.get(dtype, 4)
                found.append(Collective(kind, shape, size, depth, times))
    return found


def matmul_flops(jaxpr: Any) -> int:
    """FLOPs of the matrix products of a traced function, on all devices.

    They include what the backward pass recomputes. A loop counts as often as it runs, or once if
    that depends on data. (XLA's own count takes every loop once.)
    """
    if hasattr(jaxpr, "jaxpr"):
        jaxpr = jaxpr.jaxpr
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            summed = math.prod(left[axis] for axis in contracted)
            total += 2 * summed * math.prod(equation.outvars[0].aval.shape)
            continue
        times = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
        inner = [matmul_flops(sub) for sub in jaxprs_in_params(equation.params)]
        if equation.primitive.name == "cond":
            inner = [max(inner)]
        total += times * sum(inner)
    return total
