"""Typed configuration of a run, composed by Hydra from `configs/` and the command line."""

import dataclasses
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from pmc_jax.data import DataConfig
from pmc_jax.data.prompts import PromptConfig
from pmc_jax.errors import UserError
from pmc_jax.evaluation import EvaluationConfig
from pmc_jax.evaluation.context import RobustnessConfig
from pmc_jax.evaluation.parts import SUITES
from pmc_jax.model.language_model import ModelSource
from pmc_jax.runs.checkpoints import CheckpointConfig
from pmc_jax.runs.metrics import LoggingConfig
from pmc_jax.runtime.processes import DistributedConfig
from pmc_jax.settings import check, flat
from pmc_jax.training.optimizer import Optimizer
from pmc_jax.unlearning.method import Method, methods
from pmc_jax.unlearning.schedule import Training


@dataclasses.dataclass(frozen=True)
class Config:
    """A run: `python -m pmc_jax.train`. `method` is of the type that its name has in `METHODS`.

    `mesh` lays out the devices: "auto", or `DATAxMODEL` (4x2: four that share the batch, two
    that share each matrix). A run may go on with another.
    """

    name: str = "run"
    runs_dir: str = "runs"
    seed: int = 0
    overwrite: bool = False
    mesh: str = "auto"
    model: ModelSource = dataclasses.field(default_factory=ModelSource)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    prompt: PromptConfig = dataclasses.field(default_factory=PromptConfig)
    method: Method = dataclasses.field(default_factory=Method)
    training: Training = dataclasses.field(default_factory=Training)
    optimizer: Optimizer = dataclasses.field(default_factory=Optimizer)
    evaluation: EvaluationConfig = dataclasses.field(default_factory=EvaluationConfig)
    checkpoints: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)
    logging: LoggingConfig = dataclasses.field(default_factory=LoggingConfig)
    distributed: DistributedConfig = dataclasses.field(default_factory=DistributedConfig)


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


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """A thorough evaluation: `python -m pmc_jax.evaluate`.

    Attributes:
        name, evaluations_dir: results go to `evaluations_dir`/`name`.
        mesh: as of `Config`.
        suite: quick, paper, tofu, attacks, or full.
        compare: further models, one or a list; the first is the model before unlearning.
        prefix: what the prefilling attack makes every answer begin with.
        confidence: of every certified bound.
        max_length: most tokens of prompt and answer together.
        retain_logs: the TOFU_EVAL.json of a model that never saw the forget set.
        reference_model: a model to hold against in membership inference: one that never saw the
            forget set, or the model before it was taught.
        keep_truth: whether our TOFU_EVAL.json holds the right answers to forget questions.
        redact: whether the page hides right answers and secrets in what models said.
        robustness: how the model is changed before it is measured again.
    """

    name: str = "evaluation"
    evaluations_dir: str = "evaluations"
    seed: int = 0
    overwrite: bool = False
    mesh: str = "auto"
    suite: str = "paper"
    compare: Any = None
    prefix: str | None = "The answer is:"
    confidence: float = 0.99
    max_length: int = 200
    retain_logs: str | None = None
    reference_model: str | None = None
    keep_truth: bool = False
    redact: bool = False
    model: ModelSource = dataclasses.field(default_factory=ModelSource)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    prompt: PromptConfig = dataclasses.field(default_factory=PromptConfig)
    evaluation: EvaluationConfig = dataclasses.field(default_factory=EvaluationConfig)
    robustness: RobustnessConfig = dataclasses.field(default_factory=RobustnessConfig)
    distributed: DistributedConfig = dataclasses.field(default_factory=DistributedConfig)


@dataclasses.dataclass(frozen=True)
class PlanConfig(Config):
    """What a run would take: `python -m pmc_jax.plan`. The keys of a run, and

    Attributes:
        topology: `v5e:2x4` and other TPU slices, `h100:8` and other GPUs, or `cpu:8`.
        memory: of a device (`80GB`), where it is not the usual one.
        prompt_tokens: of the longest prompt; what is left of `training.max_length` is response.
        tries: most alternatives to compile where the run does not fit.
        out: a JSON file for all numbers.
    """

    topology: str = "cpu:1"
    memory: str | None = None
    prompt_tokens: int = 64
    tries: int = 6
    out: str | None = None


CHOICES = {
    "suite": tuple(SUITES),
    "model.dtype": ("float32", "bfloat16", "float64"),
    "model.remat": ("none", "dots", "full"),
    "data.format": ("tofu", "jsonl"),
    "prompt.template": ("auto", "chat", "plain"),
    "optimizer.schedule": ("linear", "constant"),
    "optimizer.moment_dtype": ("float32", "bfloat16"),
}

# key: (least value, whether that value itself is allowed)
LOWER_BOUNDS: dict[str, tuple[float, bool]] = {
    "max_length": (2, True),
    "confidence": (0.75, True),
    "seed": (0, True),
    "n": (1, True),
    "rows": (1, True),
    "prompt_tokens": (1, True),
    "tries": (0, True),
    "temperature": (0, True),
    "top_k": (0, True),
    "top_p": (0, False),
    "max_new_tokens": (1, True),
    "optimizer.learning_rate": (0, True),
    "optimizer.warmup_epochs": (0, True),
    "optimizer.weight_decay": (0, True),
    "optimizer.epsilon": (0, False),
    "optimizer.max_grad_norm": (0, False),
    "evaluation.max_new_tokens": (1, True),
    "evaluation.decode_batch": (1, True),
    "evaluation.attack_samples": (0, True),
    "evaluation.attack_temperature": (0, False),
    "evaluation.attack_top_k": (0, True),
    "evaluation.attack_top_p": (0, False),
    "robustness.examples": (1, True),
    "robustness.batch_size": (1, True),
    "robustness.learning_rate": (0, False),
    "checkpoints.every": (1, True),
    "checkpoints.keep": (1, True),
    "distributed.num_processes": (1, True),
    "distributed.process_id": (0, True),
    "distributed.heartbeat_timeout_seconds": (5, True),
    "distributed.initialization_timeout_seconds": (1, True),
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


for _name, _schema in (
    ("train_schema", Config),
    ("ask_schema", AskConfig),
    ("evaluate_schema", EvaluateConfig),
    ("plan_schema", PlanConfig),
):
    ConfigStore.instance().store(name=_name, node=_open_schema(_schema))
for _name, _method in methods().items():
    ConfigStore.instance().store(
        group="method", name=f"{_name}_schema", node=_open_schema(_method), package="method"
    )


def config_directory() -> Path:
    """`configs/`, in the package when installed and beside it in the repository."""
    package = Path(__file__).parents[1]
    packaged = package / "configs"
    return packaged if packaged.is_dir() else package.parent / "configs"


def settings_of(config: Any) -> dict[str, Any]:
    """Dotted keys and values, without those that tell the processes of one run apart."""
    return {k: v for k, v in flat(config).items() if not k.startswith("distributed.")}


def check_values(config: Any) -> None:
    """Refuse values that no run can mean, naming key, value and what was expected."""
    if isinstance(config, Config) and config.method.name != type(config.method).name:
        raise UserError(f"method.name={config.method.name}: choose a method by method=NAME")
    check(config)
    for key, value in flat(config).items():
        choices = CHOICES.get(key, ())
        if choices and value is not None and value not in choices:
            raise UserError(f"{key}={value}: expected one of {', '.join(choices)}")
        if key in LOWER_BOUNDS and value is not None:
            least, allowed = LOWER_BOUNDS[key]
            if not (value >= least if allowed else value > least):
                bound = "at least" if allowed else "more than"
                raise UserError(f"{key}={value}: expected {bound} {least:g}")
        if key.endswith("top_p") and value > 1:
            raise UserError(f"{key}={value}: expected at most 1")
        if key == "confidence" and value >= 1:
            raise UserError(f"{key}={value}: expected less than 1")
        if key == "seed" and value >= 2**32:
            raise UserError(f"seed={value}: expected less than 2**32")
    if isinstance(config, Config):
        config.method.check()
