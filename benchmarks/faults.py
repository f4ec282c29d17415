"""Kill a run again and again and check that nothing is lost: `python benchmarks/faults.py`.

First, a run with the bundled model finishes undisturbed. Then the same command is started again and
again and killed at random moments with SIGKILL, or, once in five times, with SIGTERM, after which
it may save and end by itself. Every run that finishes must have the weights, the metrics (except
for times) and the answers of the undisturbed run.
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

from pmc_jax.data.files import to_json

SETTINGS = ("checkpoints.every=2", "evaluation.attack_samples=0")
"""Settings of the run: many saves to interrupt, and no sampling attack to wait for."""

TERMINATED = 128 + signal.SIGTERM


@dataclasses.dataclass(frozen=True)
class Kill:
    """One interruption: the signal, and what the run was doing."""

    signal: str
    moment: str
    steps: int


def start(directory: Path, settings: Sequence[str]) -> subprocess.Popen[bytes]:
    """Start the run as a process of its own."""
    command = [sys.executable, "-m", "pmc_jax.train", f"runs_dir={directory.parent}"]
    log = directory.with_suffix(".log").open("ab")
    return subprocess.Popen(
        [*command, f"name={directory.name}", *settings], stdout=log, stderr=subprocess.STDOUT
    )


def steps_logged(directory: Path) -> int:
    """The number of complete lines in `metrics.jsonl`."""
    path = directory / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def moment(directory: Path) -> str:
    """What a run is doing now, judged by its files."""
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
    """End a running process with a signal.

    Raises:
        RuntimeError: if the process does not end properly after SIGTERM.
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

    Returns the kills, the number of runs that finished, and what differed from the undisturbed run.
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
    """Run undisturbed, then with kills.

    Raises:
        RuntimeError: if a run fails.
    """
    undisturbed = directory / "undisturbed"
    # Twice, because a killed run that starts again also finds compiled functions and the first
    # evaluation in place.
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
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=50, help="how often to kill; %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of the moments; %(default)s")
    parser.add_argument(
        "--directory", type=Path, help="directory for the runs; the default is a temporary one"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.directory) as scratch:
        result = measure(Path(scratch), options.kills, options.seed)
    (Path(__file__).parent / "faults.json").write_text(to_json(result, indent=2) + "\n")
    print(to_json(result, indent=2))
    sys.exit(bool(result["differences"]))


if __name__ == "__main__":
    main()
