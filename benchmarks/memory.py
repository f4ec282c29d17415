"""A run under limits of memory: `python benchmarks/memory.py MODEL TOFU`.

MODEL is a small model, such as SmolLM2-135M-Instruct (`smollm2.py`); TOFU has the files that
`tofu_subset.py` writes. For each limit, `pmc train` runs in a process of its own, and chooses how
much it decodes and trains at a time. It loads the model, asks it with the sampling attack, takes an
epoch of optimizer steps, writes checkpoints, asks again, and exports the model.
A control group keeps the resident memory of the process below the limit; where none can be made,
`ulimit -d` keeps its private memory below. The process finds the limit by itself. A run that may
not fit says before its first step which settings need less; if it is killed, it runs again with
them. The table has the peak of its resident memory, and its speed.

`pmc plan` computes what larger models take (docs/scaling.md).
"""

import argparse
import contextlib
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pmc_jax.data.files import write_json

HERE = Path(__file__).parent
GB = 10**9
LIMITS = (4, 6, 8)

SETTINGS = (
    "experiment=own", "model=smollm2_135m", "model.dtype=float32", "data=tofu_forget10",
    "data.retain_rows=8", "method.samples=4", "method.max_new_tokens=16", "training.epochs=1",
    "checkpoints.every=2", "evaluation.attack_samples=2", "evaluation.max_new_tokens=16",
)  # fmt: skip
"""Of the run. How much is decoded and trained at a time is "auto". Few and short samples, and few
retain questions in the evaluations, keep the whole short."""


@contextlib.contextmanager
def control_group(limit: int) -> Iterator[Path | None]:
    """A control group whose processes may take `limit` bytes; None where none can be made."""
    kinds = (("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max"))
    for root, most in kinds:
        group = Path(root) / f"pmc_jax-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            if (group / most).exists():
                (group / most).write_text(str(limit))
                yield group
                return
        finally:
            group.rmdir()
    yield None


WARNING = r"warning: an optimizer step needs .*?; (\S+=\S+(?: \S+=\S+)*) needs"
"""The line that names settings with which a run takes less memory."""


def limited(limit: int, command: Sequence[str], run: Path) -> dict[str, Any]:
    """The measurements of a run that may take `limit` GB."""
    with control_group(limit * GB) as group:

        def restrict() -> None:
            if group is None:
                resource.setrlimit(resource.RLIMIT_DATA, (limit * GB, limit * GB))
            else:
                (group / "cgroup.procs").write_text(str(os.getpid()))

        started = time.perf_counter()
        process = subprocess.Popen(
            command, preexec_fn=restrict, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True,
        )  # fmt: skip
        assert process.stdout is not None
        said = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    warned = [
        line for line in said.splitlines() if re.match("(warning|error): .*( GB|memory)", line)
    ]
    named = re.search(WARNING, said)
    return {
        "limit": limit * GB,
        "load_average": os.getloadavg()[0],
        "by": "ulimit -d" if group is None else "control group",
        "status": process.returncode,
        "peak": 1024 * usage.ru_maxrss,
        "seconds": time.perf_counter() - started,
        "said": warned,
        "named": named[1].split() if named else [],
        **(speeds(run) if process.returncode == 0 else {}),
    }


def speeds(run: Path) -> dict[str, Any]:
    """Tokens per second of each part of a finished run, and the seconds of its checkpoints."""
    summary = json.loads((run / "summary.json").read_text())
    lines = (run / "metrics.jsonl").read_text().splitlines()
    seconds, steps = summary["seconds"], [json.loads(line) for line in lines]
    # The last line of a stage in the log: "evaluating after: 424/424 (3 min)  216 tokens/s".
    answered = re.findall(r"evaluating after: .*?([\d,]+) tokens/s", (run / "log.txt").read_text())
    return {
        "steps": len(steps),
        "tokens_per_second": {
            "training": sum(row["tokens_trained"] for row in steps) / seconds["train"],
            "answers": int(answered[-1].replace(",", "")),
        },
        "checkpoint_seconds": seconds["checkpoint"],
    }


def measured(limit: int, command: Sequence[str], scratch: Path) -> list[dict[str, Any]]:
    """A run below a limit; if it fails, also one with the settings that it has named."""
    found: list[dict[str, Any]] = []
    more: list[str] = []
    while not found or (found[-1]["status"] and found[-1]["named"] and not more):
        more = found[-1]["named"] if found else []
        run = scratch / f"{limit}-{len(found)}"
        one = limited(limit, [*command, f"name={run.name}", *more], run)
        found.append({**one, "more": more})
        rates = one.get("tokens_per_second", {"training": 0, "answers": 0})
        end = f"status {one['status']}" if one["status"] else ""
        print(
            f"{limit:8}  {one['peak'] / GB:7.2f}  {one['seconds']:7,.0f}"
            f"  {rates['training']:8,.0f}  {rates['answers']:18,.0f}"
            f"  {one.get('checkpoint_seconds', 0):12,.1f}  {' '.join([*more, end])}"
        )
        print("".join(f"          {line}\n" for line in one["said"]), end="", flush=True)
        shutil.rmtree(run, ignore_errors=True)
    return found


def main() -> None:
    """Measure, print the table, and write `memory.json`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("tofu", metavar="TOFU")
    parser.add_argument("--limits", type=int, nargs="*", default=LIMITS, metavar="GB")
    parser.add_argument(
        "--settings", nargs="*", default=[], metavar="KEY=VALUE", help="more of the run",
    )  # fmt: skip
    parser.add_argument("--directory", type=Path, help="for the runs; a temporary one by default")
    options = parser.parse_args()
    settings = [*SETTINGS, *options.settings]
    found: dict[str, Any] = {"settings": settings, "limits": []}
    good = True
    print("limit GB  peak GB  seconds  training  answers (tokens/s)  checkpoint s", flush=True)
    with tempfile.TemporaryDirectory(dir=options.directory) as scratch:
        for limit in options.limits:
            command = [
                sys.executable, "-m", "pmc_jax.train", f"model.path={options.model}",
                f"data.path={options.tofu}", f"runs_dir={scratch}", *settings,
            ]  # fmt: skip
            runs = measured(limit, command, Path(scratch))
            found["limits"] += runs
            good = good and runs[-1]["status"] == 0
            write_json(HERE / "memory.json", found)
    sys.exit(not good)


if __name__ == "__main__":
    main()
