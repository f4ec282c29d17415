"""What happens to a run's directory: two runs at once, kills, damaged files, a full disk."""

import errno
import hashlib
import math
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tensorboardX import SummaryWriter
from tensorboardX.proto.event_pb2 import Event

from convert.directory import new_directory
from convert.tensors import Tensor, write_tensors
from pmc_jax import report
from pmc_jax.cli.entry_point import naming_memory
from pmc_jax.data.files import write_text, writing
from pmc_jax.errors import UserError
from pmc_jax.runs.directory import CONFIG, INPUTS, LAYOUT, holds_run, running
from pmc_jax.runs.metrics import EventFile, closed
from pmc_jax.runs.sealed import file_hashes, read_sealed, write_sealed
from pmc_jax.runtime import locks
from pmc_jax.runtime.locks import LOCK, check_free, locked

FSIZE = resource.RLIMIT_FSIZE
SETTINGS = {"method.name": "pmc", "method.samples": 4, "seed": 0}
HASHES = {"weights": "ab", "data": "cd"}


def begun(directory: Path, **changes: object) -> Path:
    """A run that has begun and was stopped."""
    with running(directory, SETTINGS | changes, HASHES, overwrite=False):
        pass
    (directory / "checkpoints").mkdir(exist_ok=True)
    return directory


# --- two runs at once ---------------------------------------------------------------------------


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock of `tmp_path`/run."""
    code = (
        "import sys, time; from pathlib import Path; from pmc_jax.runtime.locks import locked\n"
        "with locked(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_the_second_run_says_who_holds_the_directory(holder, tmp_path):
    said = rf"run is in use by process {holder.pid} on \S+ since \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d"
    for attempt in (check_free, lambda path: locked(path).__enter__(), begun):
        with pytest.raises(UserError, match=said):
            attempt(tmp_path / "run")
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [LOCK]
    holder.kill()  # nothing is left to release the lock
    holder.wait()
    check_free(tmp_path / "run")
    begun(tmp_path / "run")
    assert not (tmp_path / "run" / LOCK).exists()


def test_a_lock_is_released_and_its_file_removed(tmp_path):
    for _ in range(2):
        with locked(tmp_path / "run"):
            content = (tmp_path / "run" / LOCK).read_text()
            assert content.startswith(f"process {os.getpid()} on ")
            with pytest.raises(UserError, match=f"process {os.getpid()} on"):
                check_free(tmp_path / "run")
        assert list((tmp_path / "run").iterdir()) == []


def test_a_lock_whose_file_was_removed_is_taken_anew(tmp_path):
    """Whoever waits with the old file in hand would lock what nobody else looks at."""
    path = tmp_path / LOCK
    real, opened = locks.acquire, []

    def removed_meanwhile(descriptor):
        opened.append(os.fstat(descriptor).st_ino)
        if len(opened) == 1:
            path.unlink()
        return real(descriptor)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(locks, "acquire", removed_meanwhile)
        with locked(tmp_path):
            assert path.stat().st_ino == opened[-1] and len(opened) == 2


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL])
def test_without_locks_runs_go_on(number, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(locks.fcntl, "flock", refuse)
    begun(tmp_path / "run")
    check_free(tmp_path / "run")


# --- what a run finds in its directory ----------------------------------------------------------


def test_what_a_killed_run_left_half_written_is_removed(tmp_path):
    directory = begun(tmp_path / "run")
    half = [directory / "summary.json.partial", directory / "evaluation/before.json.partial"]
    half[1].parent.mkdir()
    for path in half:
        path.write_text("{")
    (directory / ".model.1a2b3c4d.partial").mkdir()
    (directory / ".model.1a2b3c4d.partial" / "model.safetensors").write_text("half")
    (directory / "evaluation" / "after.json").write_text("{}")
    begun(directory)
    left = {path.relative_to(directory).as_posix() for path in directory.rglob("*")}
    assert left == {CONFIG, INPUTS, "checkpoints", "evaluation", "evaluation/after.json"}


@pytest.mark.parametrize("name", [INPUTS, f"{INPUTS}.partial", LOCK, "log.txt"])
def test_a_run_killed_while_it_began_is_begun(name, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).write_text("{")
    assert not holds_run(tmp_path / "run", SETTINGS)
    assert holds_run(begun(tmp_path / "run"), SETTINGS)


def test_another_directory_is_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / INPUTS).write_text('{"a": 1}')
    for overwrite in (False, True):
        with (
            pytest.raises(UserError, match="not empty and holds no run"),
            running(tmp_path, SETTINGS, HASHES, overwrite=overwrite),
        ):
            pass
    assert {path.name for path in tmp_path.iterdir()} == {"notes.txt", INPUTS}


def test_overwriting_a_run_leaves_nothing_of_it(tmp_path):
    directory = begun(tmp_path / "run")
    (directory / "model").mkdir()
    (directory / "metrics.jsonl").write_text("")
    with running(directory, SETTINGS | {"seed": 1}, HASHES, overwrite=True):
        assert {path.name for path in directory.iterdir()} == {CONFIG, INPUTS, LOCK}
    assert holds_run(directory, SETTINGS | {"seed": 1})


ODD = {
    "cut": (CONFIG, "meth", "cannot be read"),
    "a list": (CONFIG, "- 1\n", "these are not the settings of a run"),
    "another file's": (CONFIG, "a: 1\n", "these are not the settings of a run"),
    "no YAML": (CONFIG, "a: [", "cannot be read"),
    "no text": (CONFIG, b"\xff\xfe\x00", "cannot be read"),
    "missing": (CONFIG, None, "there is no such file"),
    "another value": (
        CONFIG, "method: {name: pmc, samples: 9}\nseed: 0\n", "samples (there 9, now 4)"
    ),
    "inputs missing": (INPUTS, None, "no such file"),
    "inputs cut": (INPUTS, '{"layout": 3, "wei', "not valid JSON"),
    "inputs a list": (INPUTS, "[]", "found a list"),
    "layout a text": (INPUTS, '{"layout": "x"}', "layout is 'x'; expected a number"),
    "layout a list": (INPUTS, '{"layout": [1]}', "expected a number"),
    "no layout": (INPUTS, '{"weights": "ab"}', "an older version"),
    "another hash": (INPUTS, f'{{"layout": {LAYOUT}, "data": "cd"}}', "other weights"),
}  # fmt: skip


@pytest.mark.parametrize("odd", ODD)
def test_odd_files_are_one_line_and_stay(odd, tmp_path):
    name, content, said = ODD[odd]
    directory = begun(tmp_path / "run")
    path = directory / name
    path.unlink()
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    before = file_hashes(directory)
    with pytest.raises(UserError) as error:
        begun(directory)
    assert said in str(error.value) and "\n" not in str(error.value)
    assert str(directory) in str(error.value)
    assert file_hashes(directory) == before


# --- files with a hash of their content ---------------------------------------------------------


def without_non_finite(value):
    """The value as JSON can hold it: null for a number that is not finite."""
    if isinstance(value, list):
        return [without_non_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@given(
    content=st.dictionaries(
        st.text(max_size=5),
        st.none() | st.integers() | st.floats(allow_nan=False) | st.text() | st.lists(st.floats()),
        max_size=5,
    ),
    where=st.floats(0, 1, exclude_max=True),
    bit=st.integers(0, 7),
    cut=st.booleans(),
)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damage_to_a_sealed_file_is_noticed(content, where, bit, cut, tmp_path):
    content.pop("sha256", None)
    path = tmp_path / "x.json"
    write_sealed(path, content)
    whole = path.read_bytes()
    found = read_sealed(path, "it is measured again")
    assert (found or {}) == {key: without_non_finite(value) for key, value in content.items()}
    place = int(where * len(whole))
    rest = b"" if cut else bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :]
    path.write_bytes(whole[:place] + rest)
    again = read_sealed(path, "it is measured again")
    assert again is None or again == found  # white space may differ


def test_damage_is_named_with_what_is_done_about_it(tmp_path, caplog):
    path = tmp_path / "before.json"
    assert read_sealed(path, "it is measured again") is None and not caplog.messages
    write_sealed(path, {"rouge": 0.25})
    path.write_text(path.read_text().replace("0.25", "0.75"))
    assert read_sealed(path, "it is measured again") is None
    path.write_text("[]")
    assert read_sealed(path, "it is measured again") is None
    assert caplog.messages == [
        f"{path}: its content is not what was written; it is measured again",
        f"{path}: found a list; expected a JSON object; it is measured again",
    ]


def test_hashes_of_files_are_those_of_sha256sum(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "x").write_bytes(b"abc")
    (tmp_path / "y").write_bytes(b"")
    assert file_hashes(tmp_path) == {
        "a/b/x": hashlib.sha256(b"abc").hexdigest(), "y": hashlib.sha256(b"").hexdigest()
    }  # fmt: skip


# --- a full disk --------------------------------------------------------------------------------


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    full = r"x\.json: cannot be written \(No space left on device\)"
    with pytest.raises(UserError, match=full), writing(tmp_path / "x.json"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/x\.json: cannot be written \("):
        write_text(tmp_path / "file" / "x.json", "text")


def test_nothing_is_left_of_a_file_that_does_not_fit(tmp_path):
    """With a limit of the system on the size of files, as of a full disk."""
    code = (
        "import resource, signal, sys; from pathlib import Path\n"
        "from pmc_jax.data.files import write_text; from pmc_jax.errors import UserError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "path = Path(sys.argv[1]); write_text(path, 'old')\n"
        "try: write_text(path, 'x' * 5000)\n"
        "except UserError as error: print(error)"
    )
    path = tmp_path / "x.txt"
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True)
    assert done.stdout == f"{path}: cannot be written (File too large)\n", done.stderr
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def records(path: Path) -> Iterator[bytes]:
    """The records of a file in the format of TFRecord: length, its checksum, data, its checksum."""
    content = path.read_bytes()
    while content:
        size = int.from_bytes(content[:8], "little")
        yield content[12 : 12 + size]
        content = content[16 + size :]


def test_events_are_those_of_tensorboardx(tmp_path):
    """Also a step that a continued run takes again."""
    for first, steps in ((0, [0, 1]), (1, [1])):
        events, writer = EventFile(tmp_path / "ours", first), SummaryWriter(
            str(tmp_path / "theirs"), purge_step=first
        )  # fmt: skip
        for step in steps:
            events.append(step, {"loss": 0.5 * step, "seconds/train": 7})
            writer.add_scalar("loss", 0.5 * step, step)
            writer.add_scalar("seconds/train", 7, step)
        events.close()
        writer.close()

        def read(name: str) -> list[Any]:
            """What the file says, without times and versions."""
            (path,) = (tmp_path / name).iterdir()
            found = [Event.FromString(record) for record in records(path)]
            path.unlink()
            return [
                (event.step, event.session_log.status, [(v.tag, v.simple_value) for v in
                 event.summary.value]) for event in found if not event.file_version
            ]  # fmt: skip

        ours = read("ours")
        assert ours == read("theirs") and len(ours) == 1 + 2 * len(steps)


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """A limit of the system on the size of files, as of a full disk."""
    former = resource.getrlimit(FSIZE)
    try:
        resource.setrlimit(FSIZE, (size, former[1]))
        yield
    finally:
        resource.setrlimit(FSIZE, former)


def test_events_that_do_not_fit_are_named(tmp_path):
    events = EventFile(tmp_path / "tensorboard", 0)
    with files_of_at_most(500):
        with pytest.raises(UserError, match=r"tensorboard: cannot be written \(File too large\)"):
            for step in range(99):
                events.append(step, {"loss": 1.0})
        closed(events)


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
def test_weights_that_do_not_fit_are_named(tmp_path, dtype):
    values = [np.zeros((100, 100), dtype), np.zeros((), dtype)]
    names = {np.dtype(np.float32): "F32", np.dtype(jnp.bfloat16): "BF16"}
    tensors = [Tensor(f"x{i}", v.shape, names[v.dtype]) for i, v in enumerate(values)]
    too_large = r"x: cannot be written \(File too large\)"
    with files_of_at_most(9000), pytest.raises(UserError, match=too_large), writing(tmp_path / "x"):
        write_tensors(tmp_path, tensors, iter(values))


# --- Ctrl-C -------------------------------------------------------------------------------------


def interrupted(code: str, times: int) -> tuple[int, str, float]:
    """Status, stderr and seconds of a process that gets SIGINT after its first line."""
    code = f"import hashlib, time\nfrom pmc_jax.cli import startup\nstartup.begin()\n{code}"
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # It may be ignored here, as in a shell's background.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.readline() == "now\n"
    started = time.monotonic()
    for _ in range(times):
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
    status = process.wait(60)
    return status, process.stderr.read(), time.monotonic() - started


IMPORTING = "print('now', flush=True)\ntime.sleep(30)"
# Compiled code that takes minutes and does not look for signals.
COMPILED = """
startup.begun()
print('now', flush=True)
hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)
"""


def closing(body: str = "print('now', flush=True); time.sleep(30)", *, closed: str = "") -> str:
    """A command that runs `body`, and `closed` after Ctrl-C."""
    return f"""
import os, sys
startup.begun()
try:
    with startup.interruptible():
        {body}
except KeyboardInterrupt:
    startup.say_interrupted()
    {closed}
    sys.exit(startup.INTERRUPTED)
"""


ORDERLY = closing()
# Loading a tokenizer mutes the process's stderr.
MUTED = closing(
    "os.dup2(os.open(os.devnull, os.O_WRONLY), 2); print('now', flush=True); time.sleep(30)"
)
# Matplotlib's native code does so.
REPLACED = closing("""
        try:
            print('now', flush=True)
            time.sleep(30)
        except KeyboardInterrupt:
            raise ValueError("Invalid bounding box") from None
""")
# Python ignores exceptions while it deletes an object.
CALLBACK = closing("""
        class Slow:
            def __del__(self):
                print('now', flush=True)
                time.sleep(2)
        Slow()
        time.sleep(30)
""")
# The thread that notes the signal runs after the main thread, which is closing its files.
LATE = f"""
import os
read = os.read
startup.os.read = lambda *given: (read(*given), time.sleep(0.5))[0]
{closing(closed="time.sleep(1); print('closed', file=sys.stderr)")}
"""


@pytest.mark.parametrize(
    ("code", "times", "said"),
    [
        (IMPORTING, 1, "interrupted\n"),
        (IMPORTING, 2, "interrupted\n"),
        (ORDERLY, 1, "interrupted; Ctrl-C again ends at once\n"),
        (MUTED, 1, "interrupted; Ctrl-C again ends at once\n"),
        (REPLACED, 1, "interrupted; Ctrl-C again ends at once\n"),
        (CALLBACK, 1, "interrupted; Ctrl-C again ends at once\n"),
        (LATE, 1, "interrupted; Ctrl-C again ends at once\nclosed\n"),
        (COMPILED, 2, "interrupted; Ctrl-C again ends at once\n"),
    ],
    ids=[
        "importing",
        "importing, twice",
        "running",
        "while stderr is muted",
        "replaced by another error",
        "in a callback",
        "noted late",
        "in compiled code, twice",
    ],
)
def test_ctrl_c_is_one_line(code, times, said):
    status, stderr, seconds = interrupted(code, times)
    assert (status, stderr) == (130, said) and seconds < 15


def test_ctrl_c_after_the_end_is_silent():
    code = "startup.begun()\nstartup.ended()\nprint('now', flush=True)\ntime.sleep(30)"
    status, stderr, seconds = interrupted(code, 1)
    assert (status, stderr) == (-signal.SIGINT, "") and seconds < 15


def test_a_command_says_that_it_was_interrupted_whatever_error_follows():
    code = """
from omegaconf import OmegaConf
from pmc_jax.cli.config import AskConfig
from pmc_jax.cli.entry_point import run_task

def task(config):
    try:
        print('now', flush=True)
        time.sleep(30)
    except KeyboardInterrupt:
        raise ValueError("Invalid bounding box") from None

startup.begun()
run_task(task, OmegaConf.structured(AskConfig(question="Who?")))
"""
    status, stderr, _ = interrupted(code, 1)
    assert (status, stderr) == (130, "interrupted; Ctrl-C again ends at once\n")


def test_a_checkpoint_that_a_killed_run_left_half_written_is_removed(tmp_path):
    directory = begun(tmp_path / "run")
    for name in ("2", "4.orbax-checkpoint-tmp"):
        (directory / "checkpoints" / name / "state").mkdir(parents=True)
    begun(directory)
    assert [path.name for path in (directory / "checkpoints").iterdir()] == ["2"]


# --- too little memory --------------------------------------------------------------------------


def allocation_of_jax() -> None:
    jnp.zeros(2**50, jnp.uint8).block_until_ready()


def allocation_of_numpy() -> None:
    np.ones(2**55, np.uint8)


def mapping_of_a_library() -> None:
    raise ImportError("libx.so: failed to map segment from shared object")


def extension_without_room_for_an_error() -> None:
    raise SystemError("error return without exception set")


def wrapped() -> None:
    try:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
    except OSError as error:
        raise UserError("the tokenizer cannot be loaded") from error


@pytest.mark.parametrize(
    "failing",
    [
        allocation_of_jax,
        allocation_of_numpy,
        mapping_of_a_library,
        extension_without_room_for_an_error,
        wrapped,
    ],
)
def test_too_little_memory_is_named(failing):
    with pytest.raises(UserError, match=r"^out of memory") as error, naming_memory():
        failing()
    assert "\n" not in str(error.value)


def full_disk() -> UserError:
    """As the storage layer of checkpoints says it."""
    error = UserError("x: a checkpoint could not be written (No space left on device)")
    error.__cause__ = ValueError("RESOURCE_EXHAUSTED: Error writing: No space left on device")
    return error


def test_other_errors_are_not_about_memory():
    for other in (ValueError("x"), UserError("y"), KeyError("z"), full_disk()):
        with pytest.raises(type(other)) as error, naming_memory():
            raise other
        assert error.value is other


# --- reports of odd files -----------------------------------------------------------------------

SUMMARY = '{"before": {}, "after": {}, "steps": 0}'


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"summary.json": "[]"}, "summary.json: found a list"),
        ({"summary.json": '{"a": 1}'}, "not the summary of a run (before, after missing or odd)"),
        ({"summary.json": '{"before": 1, "after": {}}'}, "(before missing or odd)"),
        ({"summary.json": '{"before": {}, "after": {}, "verdict": {}}'}, "KeyError"),
        ({"summary.json": '{"models": 3}'}, "not the summary of an evaluation"),
        ({"summary.json": SUMMARY, "metrics.jsonl": "[]"}, "metrics.jsonl, line 1: found a list"),
        ({"summary.json": SUMMARY, "report": "a file"}, "report"),
        ({}, "summary.json: no such file"),
    ],
    ids=str,
)
def test_a_report_of_odd_files_is_one_line(files, said, tmp_path, capsys):
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    assert report.main([str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and said in line and str(tmp_path) in line


def test_a_report_says_that_steps_are_missing(tmp_path, capsys):
    (tmp_path / "summary.json").write_text('{"before": {}, "after": {}, "steps": 3}')
    (tmp_path / "metrics.jsonl").write_text('{"step": 0}\n')
    assert report.main([str(tmp_path)]) == 0
    said = "metrics.jsonl has 1 of the 3 steps of the run, so its curves are not complete"
    assert said in capsys.readouterr().err
    assert said in (tmp_path / "report" / "index.html").read_text()


# --- exported and converted models --------------------------------------------------------------


def test_what_a_killed_export_left_is_removed_and_a_running_one_is_not(tmp_path):
    abandoned, other = tmp_path / ".model.1a2b3c4d.partial", tmp_path / ".model2.1a2b3c4d.partial"
    for path in (abandoned, other):
        path.mkdir()
        (path / "model.safetensors").write_text("half")
    with new_directory(tmp_path / "model") as first:
        assert not abandoned.exists() and other.exists()
        (first / "x").write_text("1")
        with new_directory(tmp_path / "model2"):
            assert not other.exists()
        with pytest.raises(UserError), new_directory(tmp_path / "model"):
            raise UserError("another process fails")
        assert first.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "model2"]


def test_without_locks_a_half_written_export_is_named(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(locks, "acquire", lambda descriptor: None)
    old = tmp_path / ".model.1a2b3c4d.partial"
    old.mkdir()
    with new_directory(tmp_path / "model"):
        pass
    assert old.exists() and f"{old} is left of a process that was killed" in caplog.text


def test_an_export_that_does_not_fit_is_named(tmp_path):
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with (
        pytest.raises(UserError, match=r"model: cannot be written \(No space left on device\)"),
        new_directory(tmp_path / "model"),
    ):
        raise full
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["pmc_jax.train", "pmc_jax.ask", "pmc_jax.report", "convert"])
def test_too_little_memory_to_import_anything(command):
    """Otherwise importing SciPy would try for ever to reserve memory."""
    code = (
        "import os, resource, sys; resource.setrlimit(resource.RLIMIT_AS, (6 * 10**8,) * 2)\n"
        f"os.execv(sys.executable, [sys.executable, '-m', '{command}'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    said = "error: memory is limited to 600 MB (ulimit -v); expected at least 1,000 MB\n"
    assert done.stderr == said
