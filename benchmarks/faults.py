"""Kill a run again and again and see that nothing is lost: `python benchmarks/faults.py`.

The run with the bundled model goes through once undisturbed. Then the same command is started
again and again and killed at random moments, with SIGKILL, or once in five with SIGTERM, after
which it may save and end by itself. Every run that gets to its end must have the weights, the
metrics (but for times) and the answers of the undisturbed one.
"""

import argparse
import dataclasses
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SETTINGS = ("checkpoints.every=2", "evaluation.attack_samples=0")
"""Of the run: many saves to interrupt, and no sampling attack to wait for."""

TERMINATED = 128 + signal.SIGTERM


@dataclasses.dataclass(frozen=True)
class Kill:
    """One interruption: by which signal, and what the run was doing."""

    signal: str
    moment: str
    steps: int


def start(directory: Path, settings: Sequence[str]) -> subprocess.Popen[bytes]:
    """The run as a process of its own."""
    command = [sys.executable, "-m", "pmc_jax.train", f"runs_dir={directory.parent}"]
    log = directory.with_suffix(".log").open("ab")
    return subprocess.Popen(
        [*command, f"name={directory.name}", *settings], stdout=log, stderr=subprocess.STDOUT
    )


def steps_logged(directory: Path) -> int:
    """Whole lines of `metrics.jsonl`."""
    path = directory / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def moment(directory: Path) -> str:
    """What a run is doing just now, by its files."""
    if (directory / "model").exists():
        return "after training"
    checkpoints = directory / "checkpoints"
    if any("tmp" in path.name for path in checkpoints.glob("*")):
        return "while saving"
    return "while training" if steps_logged(directory) else "before the first step"


def outcome(directory: Path) -> dict[str, Any]:
    """What a finished run must reproduce."""
    lines = (directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return {
        "weights": hashlib.sha256((directory / "model/model.safetensors").read_bytes()).hexdigest(),
        "metrics": [{**json.loads(line), "seconds": None, "per_second": None} for line in lines],
        "samples": (directory / "samples.jsonl").read_text(encoding="utf-8"),
    }


def interrupt(process: subprocess.Popen[bytes], directory: Path, rng: random.Random) -> Kill:
    """End a running process by a signal.

    Raises:
        RuntimeError: if one that was asked to end (SIGTERM) fails to.
    """
    polite = rng.random() < 0.2
    kill = Kill("SIGTERM" if polite else "SIGKILL", moment(directory), steps_logged(directory))
    process.send_signal(signal.SIGTERM if polite else signal.SIGKILL)
    code = process.wait(timeout=300)
    if polite and code not in (TERMINATED, -signal.SIGTERM, 0):
        raise RuntimeError(f"SIGTERM ended the run with status {code}")
    return kill


def run_with_kills(
    directory: Path, kills: int, seconds: float, settings: Sequence[str], rng: random.Random
) -> tuple[list[Kill], int, list[str]]:
    """Kill runs within `seconds` of their start, `kills` times in all.

    Returns the kills, how many runs got to their end, and what differed from `reference`.
    """
    found: list[Kill] = []
    wrong: list[str] = []
    finished = 0
    reference = outcome(directory / "undisturbed")
    place = directory / f"run-{finished}"
    while True:
        process = start(place, settings)
        try:
            process.wait(timeout=rng.uniform(0, seconds) if len(found) < kills else None)
        except subprocess.TimeoutExpired:
            found.append(interrupt(process, place, rng))
            print(f"{len(found):>3}  {found[-1]}", flush=True)
            continue
        if process.returncode:
            raise RuntimeError(f"status {process.returncode}; see {place.with_suffix('.log')}")
        result = outcome(place)
        wrong += [f"{place.name}: {key}" for key in reference if result[key] != reference[key]]
        finished += 1
        if len(found) >= kills:
            return found, finished, wrong
        shutil.rmtree(place)
        place = directory / f"run-{finished}"


def measure(
    directory: Path, kills: int, seed: int, settings: Sequence[str] = SETTINGS
) -> dict[str, Any]:
    """The undisturbed run, then the kills.

    Raises:
        RuntimeError: if a run fails.
    """
    undisturbed = directory / "undisturbed"
    # Twice: programs that are compiled already, and a first evaluation that is there already, are
    # what a run that was killed begins with.
    for _ in range(2):
        shutil.rmtree(undisturbed, ignore_errors=True)
        started = time.perf_counter()
        if start(undisturbed, settings).wait():
            raise RuntimeError(f"the undisturbed run failed; see {undisturbed.with_suffix('.log')}")
        seconds = time.perf_counter() - started
    found, finished, wrong = run_with_kills(
        directory, kills, seconds, settings, random.Random(seed)
    )
    return {
        "kills": len(found),
        "seconds_undisturbed": seconds,
        "runs_finished": finished,
        "by_signal": dict(Counter(kill.signal for kill in found)),
        "by_moment": dict(Counter(kill.moment for kill in found)),
        "differences": wrong,
        "load_average": os.getloadavg()[0],
    }


def main() -> None:
    """Measure, print, and write `benchmarks/faults.json`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--directory", type=Path, help="for the runs; a temporary one if not given")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.directory) as scratch:
        result = measure(Path(scratch), options.kills, options.seed)
    (Path(__file__).parent / "faults.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))
    sys.exit(bool(result["differences"]))


if __name__ == "__main__":
    main()
