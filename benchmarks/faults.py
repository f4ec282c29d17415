"""Disturb runs in every way and check that nothing is lost: `python benchmarks/faults.py`.

- Kills: a run with the bundled model finishes undisturbed. Then the same command is started again
  and again and killed at random moments with SIGKILL, or, once in five times, with SIGTERM, after
  which it may save and end by itself. Every run that finishes must have the weights, the metrics
  (except for times) and the answers of the undisturbed run.
- Interrupts: Ctrl-C at random moments, once or twice, ends a run with one line and status 130.
- Limits: with too little room for files, on a full disk or with too little memory, a run ends with
  one line that names the file or the memory. If a library aborts the process because
  memory runs out, its own message counts. Disks are tmpfs, where the user may mount one.
- Damage: a run is stopped, one of its files is deleted, cut, emptied, or changed, and the same
  command called again. It must end as the undisturbed run, or with one line that names the file.
- Reports: files of a finished run are damaged. `pmc report` must write the report, or say what is
  wrong in one line.

No attempt may print a traceback or hang.
"""

import argparse
import dataclasses
import hashlib
import io
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any

from pmc_jax import report
from pmc_jax.data.files import to_json

SETTINGS = ("training.epochs=4", "checkpoints.every=2", "evaluation.attack_samples=0")
"""Settings of the run: many saves to interrupt, and no sampling attack to wait for."""

TERMINATED = 128 + signal.SIGTERM

ABORTS = "memory", "bad_alloc", "mmap error", "pthread_create"
"""What libraries print before they abort the process because memory runs out."""


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


@dataclasses.dataclass(frozen=True)
class Attempt:
    """One disturbed command: what was done to it, how it ended, and what is wrong with that."""

    what: str
    status: int | None
    said: str
    wrong: str = ""


MOST_SECONDS = 600
"""A command that takes longer hangs."""


def disturbed(
    what: str,
    directory: Path,
    *,
    settings: Sequence[str] = SETTINGS,
    limit: tuple[int, int] | None = None,
    interrupts: Sequence[float] = (),
    allowed: Sequence[int] = (0,),
    expected: str = "error: ",
) -> Attempt:
    """Call the command in a process with a resource limit, or with Ctrl-C after some seconds each.

    Args:
        limit: a resource and its limit (`resource.setrlimit`).
        allowed: the statuses that it may end with; every other than 0 with one line that begins
            with `expected`.
    """

    def prepare() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        if limit is not None:
            resource.setrlimit(limit[0], (limit[1], limit[1]))

    command = [sys.executable, "-m", "pmc_jax.train", f"runs_dir={directory.parent}"]
    process = subprocess.Popen(
        [*command, f"name={directory.name}", *settings], stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, preexec_fn=prepare,
    )  # fmt: skip
    try:
        for seconds in interrupts:
            with suppress(subprocess.TimeoutExpired):
                process.wait(seconds)
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=MOST_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        _, said = process.communicate()
        return Attempt(what, None, said, "it hangs")
    return Attempt(
        what, process.returncode, said, judged(process.returncode, said, allowed, expected)
    )


def judged(status: int, said: str, allowed: Sequence[int], expected: str) -> str:
    """What is wrong with the end of a command; empty if nothing is."""
    if "Traceback" in said:
        return "a traceback"
    if status not in allowed:
        return f"status {status}"
    lines = [line for line in said.splitlines() if not line.startswith("warning")]
    ends = [line for line in lines if re.match(expected, line)]
    if status == -signal.SIGINT and not lines:
        return ""  # it had ended already
    if status == -signal.SIGABRT and any(words in said for words in ABORTS):
        return ""
    if status and (len(ends) != 1 or lines[-1:] != ends):
        return "not one line"
    return ""


def interrupted_runs(
    directory: Path, number: int, rng: random.Random, seconds: float
) -> list[Attempt]:
    """Ctrl-C at random moments of a run, every other time twice.

    After its last line, a command ends as the signal does by default. Shells call that 130, too.
    """
    found = []
    for index in range(number):
        moments = [rng.uniform(0.5, seconds / 2), *([rng.uniform(0.1, 2)] if index % 2 else [])]
        what = "Ctrl-C after " + " and ".join(f"{moment:.1f} s" for moment in moments)
        if index % 3 == 0:
            shutil.rmtree(directory / "interrupted", ignore_errors=True)
        attempt = disturbed(
            what, directory / "interrupted", interrupts=moments, allowed=(0, 130, -signal.SIGINT),
            expected="interrupted",
        )  # fmt: skip
        found.append(attempt)
        told(attempt)
    return found


def limited_runs(directory: Path, number: int, rng: random.Random) -> list[Attempt]:
    """Runs with a limit on the size of files, and with a limit on memory."""
    found = []
    for kind, name, low, high, expected in (
        (resource.RLIMIT_FSIZE, "files", 3e3, 3e7, r"error: .*(be written|too large|memory)"),
        (resource.RLIMIT_AS, "memory", 5e8, 6e9, r"error: .*memory"),
    ):
        for _ in range(number):
            size = round(low * (high / low) ** rng.random())
            shutil.rmtree(directory / "limited", ignore_errors=True)
            attempt = disturbed(
                f"{name} limited to {size:,} bytes", directory / "limited", limit=(kind, size),
                allowed=(0, 1, 2, *([-signal.SIGABRT] if name == "memory" else [])),
                expected=expected,
            )  # fmt: skip
            found.append(attempt)
            told(attempt)
    return found


def full_disks(directory: Path, number: int, rng: random.Random) -> list[Attempt]:
    """Runs on disks that are too small; none where none can be mounted."""
    found: list[Attempt] = []
    place = directory / "small"
    place.mkdir()
    for _ in range(number):
        size = round(5e4 * (6e7 / 5e4) ** rng.random())
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
        if subprocess.run(mount, capture_output=True).returncode:
            break
        try:
            attempt = disturbed(
                f"a disk of {size:,} bytes", place / "run", allowed=(0, 2),
                expected=r"error: .*/small/.* be written",
            )  # fmt: skip
        finally:
            subprocess.run(["umount", str(place)], check=True)
        found.append(attempt)
        told(attempt)
    return found


DAMAGE: dict[str, Callable[[bytes, random.Random], bytes | None]] = {
    "deleted": lambda content, rng: None,
    "emptied": lambda content, rng: b"",
    "cut": lambda content, rng: content[: rng.randrange(len(content) or 1)],
    "flipped": lambda content, rng: flipped(content, rng.randrange(8 * len(content) or 1)),
    "replaced by a list": lambda content, rng: b"[1, 2]\n",
    "replaced by an object": lambda content, rng: b'{"a": {"b": null}}\n',
    "replaced by bytes": lambda content, rng: rng.randbytes(100),
}


def flipped(content: bytes, bit: int) -> bytes:
    """`content` with one bit changed."""
    found = bytearray(content)
    if found:
        found[bit // 8] ^= 1 << bit % 8
    return bytes(found)


def damage(directory: Path, rng: random.Random, names: Sequence[str]) -> str:
    """Damage one of the files `names` of a directory; returns what was done."""
    path = directory / rng.choice([name for name in names if (directory / name).is_file()])
    how = rng.choice(list(DAMAGE))
    content = DAMAGE[how](path.read_bytes(), rng)
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    return f"{path.relative_to(directory)} {how}"


OF_A_RUN = ("config.yaml", "inputs.json", "metrics.jsonl", "evaluation/before.json", "log.txt")


def damaged_runs(directory: Path, number: int, rng: random.Random) -> list[Attempt]:
    """Runs that are continued after one of their files was damaged."""
    reference = outcome(directory / "undisturbed")
    stopped, place = directory / "stopped", directory / "damaged"
    process = start(place, SETTINGS)
    while steps_logged(place) < 4:
        time.sleep(0.1)
    process.kill()
    process.wait()
    place.rename(stopped)
    found = []
    for _ in range(number):
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(stopped, place)
        attempt = disturbed(damage(place, rng, OF_A_RUN), place, allowed=(0, 2))
        if attempt.status == 0 and not attempt.wrong and outcome(place) != reference:
            attempt = dataclasses.replace(attempt, wrong="it ends differently")
        found.append(attempt)
        told(attempt)
    return found


OF_A_FINISHED_RUN = ("summary.json", "metrics.jsonl", "samples.jsonl", "config.yaml", "inputs.json")


def damaged_reports(directory: Path, number: int, rng: random.Random) -> list[Attempt]:
    """Reports of a finished run of which one file was damaged, within this process."""
    found = []
    for _ in range(number):
        place = directory / "reported"
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(
            directory / "undisturbed", place, ignore=shutil.ignore_patterns("checkpoints", "model")
        )
        what, errors = damage(place, rng, OF_A_FINISHED_RUN), io.StringIO()
        with redirect_stdout(io.StringIO()), redirect_stderr(errors):
            try:
                status = report.main([str(place)])
            except Exception:
                traceback.print_exc(file=errors)
                status = 1
        said = errors.getvalue()
        found.append(Attempt(what, status, said, judged(status, said, (0, 2), "error: ")))
        told(found[-1])
    return found


def told(attempt: Attempt) -> None:
    """Print what became of an attempt."""
    last = (attempt.said.strip().splitlines() or [""])[-1][:160]
    end = f"status {attempt.status}  {last}"
    print(f"{attempt.wrong or 'good':<20} {attempt.what}: {end}", flush=True)


def counted(attempts: Sequence[Attempt]) -> dict[str, Any]:
    """How many attempts there were, how they ended, and those that ended badly."""
    return {
        "attempts": len(attempts),
        "by_status": dict(Counter(str(attempt.status) for attempt in attempts)),
        "wrong": [dataclasses.asdict(attempt) for attempt in attempts if attempt.wrong],
    }


def undisturbed_run(directory: Path, settings: Sequence[str] = SETTINGS) -> float:
    """Make the run that every other is compared with; returns the seconds that it takes.

    Raises:
        RuntimeError: if it fails.
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
    return seconds


def measure(
    directory: Path, kills: int, seed: int, settings: Sequence[str] = SETTINGS
) -> dict[str, Any]:
    """Run undisturbed, then with kills.

    Raises:
        RuntimeError: if a run fails.
    """
    seconds = undisturbed_run(directory, settings)
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
    for name, number, what in (
        ("interrupts", 40, "runs that Ctrl-C ends"),
        ("limits", 20, "runs with little room for files, and with little memory"),
        ("disks", 10, "runs on a disk that is too small"),
        ("damages", 40, "runs with a damaged file"),
        ("reports", 200, "reports of damaged files"),
    ):
        parser.add_argument(f"--{name}", type=int, default=number, help=f"{what}; %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of the moments; %(default)s")
    parser.add_argument(
        "--directory", type=Path, help="directory for the runs; the default is a temporary one"
    )
    options = parser.parse_args()
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory(dir=options.directory) as scratch:
        directory = Path(scratch)
        result = measure(directory, options.kills, options.seed)
        seconds = result["seconds_undisturbed"]
        result["interrupts"] = counted(
            interrupted_runs(directory, options.interrupts, rng, seconds)
        )
        result["limits"] = counted(limited_runs(directory, options.limits, rng))
        result["disks"] = counted(full_disks(directory, options.disks, rng))
        result["damage"] = counted(damaged_runs(directory, options.damages, rng))
        result["reports"] = counted(damaged_reports(directory, options.reports, rng))
    (Path(__file__).parent / "faults.json").write_text(to_json(result, indent=2) + "\n")
    print(to_json(result, indent=2))
    groups = ("interrupts", "limits", "disks", "damage", "reports")
    sys.exit(bool(result["differences"]) or any(result[group]["wrong"] for group in groups))


if __name__ == "__main__":
    main()
