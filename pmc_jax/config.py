"""Typed configuration of a run, composed by Hydra from `configs/` and the command line."""

import dataclasses
import difflib
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pmc_jax.data import DataConfig
from pmc_jax.data.prompts import PromptConfig
from pmc_jax.errors import UserError
from pmc_jax.evaluation import EvaluationConfig
from pmc_jax.nested import flatten
from pmc_jax.pretrained import ModelSource
from pmc_jax.training.checkpoints import CheckpointConfig
from pmc_jax.training.loop import BatchConfig
from pmc_jax.training.optimizer import OptimizerConfig
from pmc_jax.unlearning.config import PMCConfig


@dataclasses.dataclass(frozen=True)
class LoggingConfig:
    """Where metrics go besides `metrics.jsonl`."""

    tensorboard: bool = False
    wandb: bool = False


@dataclasses.dataclass(frozen=True)
class Config:
    """A PMC run: `python -m pmc_jax.train`."""

    name: str = "run"
    runs_dir: str = "runs"
    seed: int = 0
    overwrite: bool = False
    model: ModelSource = dataclasses.field(default_factory=ModelSource)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    prompt: PromptConfig = dataclasses.field(default_factory=PromptConfig)
    method: PMCConfig = dataclasses.field(default_factory=PMCConfig)
    training: BatchConfig = dataclasses.field(default_factory=BatchConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    evaluation: EvaluationConfig = dataclasses.field(default_factory=EvaluationConfig)
    checkpoints: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)
    logging: LoggingConfig = dataclasses.field(default_factory=LoggingConfig)


@dataclasses.dataclass(frozen=True)
class AskConfig:
    """Asking a model: `python -m pmc_jax.ask`.

    `question`, or a JSONL file `questions` whose answers go to the JSONL file `out`.
    `prefix` is a text that every response is made to begin with.
    """

    question: str | None = None
    questions: str | None = None
    out: str | None = None
    n: int = 1
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    max_new_tokens: int = 128
    seed: int = 0
    prefix: str | None = None
    rows: int = 256
    overwrite: bool = False
    model: ModelSource = dataclasses.field(default_factory=ModelSource)
    prompt: PromptConfig = dataclasses.field(default_factory=PromptConfig)


CHOICES = {
    "model.dtype": ("float32", "bfloat16", "float64"),
    "model.remat": ("none", "dots", "full"),
    "data.format": ("tofu", "jsonl"),
    "prompt.template": ("auto", "chat", "plain"),
    "optimizer.schedule": ("linear", "constant"),
}

# key: (least value, whether that value itself is allowed)
LOWER_BOUNDS: dict[str, tuple[float, bool]] = {
    "seed": (0, True),
    "n": (1, True),
    "rows": (1, True),
    "temperature": (0, True),
    "top_k": (0, True),
    "top_p": (0, False),
    "max_new_tokens": (1, True),
    "method.samples": (1, True),
    "method.temperature": (0, True),
    "method.top_k": (0, True),
    "method.top_p": (0, False),
    "method.max_new_tokens": (1, True),
    "method.selection_temperature": (0, True),
    "method.min_len": (0, True),
    "method.retain_weight": (0, True),
    "method.retain_per_forget": (0, True),
    "training.epochs": (0, True),
    "training.batch_size": (1, True),
    "training.accumulation": (1, True),
    "training.max_length": (2, True),
    "training.rows": (1, True),
    "training.wave": (0, True),
    "training.chunk": (1, True),
    "optimizer.learning_rate": (0, True),
    "optimizer.warmup_epochs": (0, True),
    "optimizer.weight_decay": (0, True),
    "optimizer.epsilon": (0, False),
    "optimizer.max_grad_norm": (0, False),
    "evaluation.max_new_tokens": (1, True),
    "evaluation.rows": (1, True),
    "evaluation.attack_samples": (0, True),
    "evaluation.attack_temperature": (0, False),
    "evaluation.attack_top_k": (0, True),
    "evaluation.attack_top_p": (0, False),
    "checkpoints.every": (1, True),
    "checkpoints.keep": (1, True),
}


def _open_schema(schema: type) -> DictConfig:
    """`schema` as a node to compose into; OmegaConf makes frozen dataclasses read-only."""

    def unlock(node: DictConfig) -> None:
        OmegaConf.set_readonly(node, None)
        for key in node:
            child = node._get_node(key)
            if isinstance(child, DictConfig):
                unlock(child)

    node = OmegaConf.structured(schema)
    unlock(node)
    return node


for _name, _schema in (("train_schema", Config), ("ask_schema", AskConfig)):
    ConfigStore.instance().store(name=_name, node=_open_schema(_schema))


def config_directory() -> Path:
    """`configs/`, in the package when installed and beside it in the repository."""
    packaged = Path(__file__).parent / "configs"
    return packaged if packaged.is_dir() else Path(__file__).parent.parent / "configs"


def check_values(config: Any) -> None:
    """Refuse values that no run can mean, naming key, value and what was expected."""
    for key, value in flatten(config).items():
        if key in CHOICES and value not in CHOICES[key]:
            raise UserError(f"{key}={value}: expected one of {', '.join(CHOICES[key])}")
        if key in LOWER_BOUNDS and value is not None:
            least, allowed = LOWER_BOUNDS[key]
            if not (value >= least if allowed else value > least):
                bound = "at least" if allowed else "more than"
                raise UserError(f"{key}={value}: expected {bound} {least:g}")
        if key.endswith("top_p") and value > 1:
            raise UserError(f"{key}={value}: expected at most 1")
        if key == "seed" and value >= 2**32:
            raise UserError(f"seed={value}: expected less than 2**32")


def _one_line(error: BaseException, schema: type) -> str:
    """Hydra's and OmegaConf's messages, which span lines, as one that names the key."""
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    key = getattr(cause, "full_key", None)
    message = str(error).strip() if cause is error else str(cause).strip()
    if key and "not in" in message.splitlines()[0]:
        nearest = difflib.get_close_matches(key, flatten(schema()), n=1, cutoff=0.0)
        return f"unknown configuration key {key}; the nearest valid key is {nearest[0]}"
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    kept = [line for line in lines if not line.startswith(("full_key:", "object_type=", "Set the"))]
    text = " ".join(kept).partition(" Config search path:")[0]
    return f"{key}: {text}" if key else text


def _compose(overrides: list[str], name: str, schema: type) -> None:
    """Compose once ahead of Hydra's own run, so that mistakes become one line."""
    try:
        with hydra.initialize_config_dir(str(config_directory()), version_base="1.3"):
            composed = hydra.compose(name, overrides=overrides)
            OmegaConf.to_object(composed)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(_one_line(error, schema)) from error


FREE_TEXT = ("question", "prefix", "prompt.system", "prompt.question", "prompt.answer")


def quoted(argument: str) -> str:
    """`key=text` of a free-text key with the text in quotes, as Hydra's grammar wants it."""
    key, equals, text = argument.partition("=")
    bare = key not in FREE_TEXT or not equals or text == "null"
    if bare or (len(text) > 1 and text[0] == text[-1] and text[0] in "\"'"):
        return argument
    # Backslashes are literal but where a quote or an interpolation follows.
    text = re.sub(r"(\\*)\$\{", r"\1\1\\${", text)
    escaped = re.sub(r'(\\*)("|$)', r"\1\1\2", text).replace('"', '\\"')
    return f'{key}="{escaped}"'


def entry_point(task: Callable[[Any], None], name: str, schema: type) -> Callable[[], None]:
    """The `main` of a command: configuration from Hydra, user errors as one line and status 2.

    Hydra neither changes the working directory nor writes files of its own.
    """

    def run(composed: DictConfig) -> None:
        try:
            config = OmegaConf.to_object(composed)
            check_values(config)
            task(config)
        except (UserError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            sys.exit(130)

    def main() -> None:
        # transformers would say at import that PyTorch is missing; nothing here needs it.
        os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
        sys.argv[1:] = arguments = [quoted(argument) for argument in sys.argv[1:]]
        if not any(argument.startswith("-") for argument in arguments):
            try:
                _compose(arguments, name, schema)
            except UserError as error:
                print(f"error: {error}", file=sys.stderr)
                sys.exit(2)
        hydra.main(version_base="1.3", config_path=str(config_directory()), config_name=name)(run)()

    return main
