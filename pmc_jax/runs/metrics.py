"""Where the numbers of each step go: `metrics.jsonl`, TensorBoard, Weights & Biases."""

import dataclasses
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from pmc_jax.data.files import to_json, write_json_lines, writing
from pmc_jax.errors import UserError
from pmc_jax.runtime.processes import is_first
from pmc_jax.settings import flat


@dataclasses.dataclass(frozen=True)
class LoggingConfig:
    """Where a run's numbers go besides `metrics.jsonl`.

    Attributes:
        tensorboard: write TensorBoard event files.
        wandb: send them to Weights & Biases (extra `wandb`).
        update_norm: log the norm of each update; on a CPU this needs memory for a copy of it.
    """

    tensorboard: bool = True
    wandb: bool = False
    update_norm: bool = True


def check_logging(config: LoggingConfig) -> None:
    """Check before a run's work that what it logs to is there.

    Raises:
        UserError: if Weights & Biases is not installed, or has no key to send anything with.
    """
    if not config.wandb:
        return
    try:
        import wandb as service
    except ImportError as error:
        raise UserError("logging.wandb=true: install the extra pmc_jax[wandb]") from error
    if os.environ.get("WANDB_MODE", "online") != "online":
        return
    try:
        service.login()  # asks for a key on a terminal
    except Exception as error:  # the client raises many kinds
        raise UserError(
            f"logging.wandb=true: {' '.join(str(error).split())}; run `wandb login`, set "
            "WANDB_API_KEY, or set WANDB_MODE=offline"
        ) from error


class Metrics:
    """`metrics.jsonl` and the other loggers; `rows` are all lines of the run so far.

    A run that continues gets the lines of its checkpoint, so that the file is whole whatever has
    become of it. Processes other than the first write nothing.
    """

    def __init__(self, path: Path, rows: Sequence[Mapping[str, Any]] = ()) -> None:
        self.rows = [dict(row) for row in rows]
        write_json_lines(path, self.rows)
        self._path = path
        self.listeners: list[Any] = []
        self._file = path.open("a", encoding="utf-8") if is_first() else None

    def append(self, row: dict[str, Any]) -> None:
        """Write one step's line at once."""
        self.rows.append(row)
        if self._file is not None:
            with writing(self._path):
                self._file.write(to_json(row) + "\n")
                self._file.flush()
        numbers_by_key = {key.replace(".", "/"): value for key, value in flat(row).items()}
        numbers = {
            key: value for key, value in numbers_by_key.items() if isinstance(value, int | float)
        }
        for listener in self.listeners:
            listener(row["step"], numbers)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            closed(self._file)


def closed(file: Any) -> None:
    """Close a file or writer; what could not be written has been reported already."""
    with suppress(OSError):
        file.close()


class EventFile:
    """Scalars for TensorBoard, each written at once.

    The `SummaryWriter` of tensorboardX has a thread for this. If the disk is full, the thread ends
    with a traceback, and its queue fills up.

    Args:
        directory: of the file.
        first_step: TensorBoard hides what earlier files have of this step and later ones.
    """

    def __init__(self, directory: Path, first_step: int) -> None:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import SessionLog

        self._directory = directory
        with writing(directory):
            directory.mkdir(exist_ok=True)
            self._file = EventsWriter(str(directory / "events"))
        self._write(first_step, session_log=SessionLog(status=SessionLog.START))

    def append(self, step: int, numbers: Mapping[str, float]) -> None:
        """Write the numbers of a step.

        Raises:
            UserError: if they cannot be written.
        """
        from tensorboardX.summary import scalar

        for name, number in numbers.items():
            self._write(step, summary=scalar(name, number))
        with writing(self._directory):
            self._file.flush()

    def _write(self, step: int, **content: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event

        with writing(self._directory):
            self._file.write_event(Event(step=step, wall_time=time.time(), **content))

    def close(self) -> None:
        """Close the file."""
        self._file.close()


@contextmanager
def open_metrics(
    directory: Path,
    rows: Sequence[Mapping[str, Any]],
    first_step: int,
    *,
    logging: LoggingConfig,
    settings: Mapping[str, Any],
) -> Iterator[Metrics]:
    """The metrics of a run that continues at `first_step`, after the lines `rows`."""
    with ExitStack() as stack:
        metrics = Metrics(directory / "metrics.jsonl", rows)
        stack.callback(metrics.close)
        if logging.tensorboard and is_first():
            events = EventFile(directory / "tensorboard", first_step)
            stack.callback(closed, events)
            metrics.listeners.append(events.append)
        if logging.wandb and is_first():
            import wandb as service

            project = service.init(
                project="pmc_jax", name=directory.name, dir=str(directory), config=dict(settings)
            )
            stack.callback(project.finish)
            metrics.listeners.append(lambda step, row: project.log(row, step=step))
        yield metrics
