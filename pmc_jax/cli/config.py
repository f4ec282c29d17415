"""The settings of each command, composed by Hydra from `configs/` and the command line."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from omegaconf import MISSING, DictConfig, OmegaConf

from pmc_jax import settings
from pmc_jax.cli.overrides import Setting, settings_of
from pmc_jax.data import DataConfig
from pmc_jax.data.prompt_config import PromptConfig
from pmc_jax.data.rows import QuestionFile
from pmc_jax.data.world import DEFAULT_SEED
from pmc_jax.errors import UserError
from pmc_jax.evaluation import EvaluationConfig
from pmc_jax.evaluation.config import EvaluateConfig
from pmc_jax.language_model import ModelSource
from pmc_jax.model.trainable import LoRA
from pmc_jax.runs.checkpoints import CheckpointConfig
from pmc_jax.runs.metrics import LoggingConfig
from pmc_jax.runtime.processes import DistributedConfig
from pmc_jax.settings import automatic, bounded, free_text, random_seed
from pmc_jax.training.optimizer import Optimizer
from pmc_jax.unlearning.method import Method, methods, resolve
from pmc_jax.unlearning.schedule import Training


@dataclasses.dataclass(frozen=True)
class Config:
    """The settings of `pmc train`. The name of `method` determines its class (`methods()`).

    Attributes:
        name: files go to the directory `runs_dir`/`name`.
        runs_dir: the directory of all runs.
        seed: seed of all random numbers.
        overwrite: replace a run that has the same name.
        mesh: devices: "auto", or DATAxMODEL. 4x2 shards batches 4 ways and weights 2 ways.
        memory: most memory to take of a device, or of the machine for CPUs, such as 6GB.
        adapter: an adapter to train in place of the weights; null: the weights are trained.
    """

    name: str = "run"
    runs_dir: str = "runs"
    seed: int = random_seed()
    overwrite: bool = False
    mesh: str = "auto"
    memory: str | None = None
    model: ModelSource = dataclasses.field(default_factory=ModelSource)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    prompt: PromptConfig = dataclasses.field(default_factory=PromptConfig)
    method: Method = dataclasses.field(default_factory=Method)
    adapter: LoRA | None = None
    training: Training = dataclasses.field(default_factory=Training)
    optimizer: Optimizer = dataclasses.field(default_factory=Optimizer)
    evaluation: EvaluationConfig = dataclasses.field(default_factory=EvaluationConfig)
    checkpoints: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)
    logging: LoggingConfig = dataclasses.field(default_factory=LoggingConfig)
    distributed: DistributedConfig = dataclasses.field(default_factory=DistributedConfig)


@dataclasses.dataclass(frozen=True)
class AskConfig:
    """The settings of `pmc ask`.

    Attributes:
        question: the question to ask.
        questions: file of questions, like a forget file, in place of `question`.
        out: JSONL file for the answers to `questions`.
        n: answers per question.
        temperature: sampling temperature; 0 is greedy.
        top_k: sample from the k most likely tokens; 0 is off.
        top_p: sample from the most likely tokens with this total probability; 1 is off.
        max_new_tokens: longest answer in tokens.
        seed: seed of all random numbers.
        prefix: text that every answer is forced to begin with.
        decode_batch: most answers decoded at a time; "auto": as many as fit into memory.
        overwrite: replace the file `out`.
        memory: most memory to take of the device, or of the machine for CPUs, such as 6GB.
    """

    question: str | None = free_text(None)
    questions: str | None = None
    out: str | None = None
    n: int = bounded(1, least=1, most=2**16)
    temperature: float = bounded(0.0, least=0)
    top_k: int = bounded(0, least=0)
    top_p: float = bounded(1.0, above=0, most=1)
    max_new_tokens: int = bounded(128, least=1)
    seed: int = random_seed()
    prefix: str | None = free_text(None)
    decode_batch: int | str = automatic()
    overwrite: bool = False
    memory: str | None = None
    model: ModelSource = dataclasses.field(default_factory=ModelSource)
    data: QuestionFile = dataclasses.field(default_factory=QuestionFile)
    prompt: PromptConfig = dataclasses.field(default_factory=PromptConfig)


@dataclasses.dataclass(frozen=True)
class DraftConfig:
    """The settings of `pmc draft`.

    Attributes:
        person: name of the person to forget.
        out: directory for the new files forget.jsonl and retain.jsonl.
        questions: file of further questions; "{person}" in them stands for the name, and such
            questions are asked about other people, too.
        patterns: ask the built-in questions, which are in English.
        others: other people to retain, separated by commas, or a .txt file with one name per
            line; by default, the model proposes some.
        people: the largest number of people that the model proposes.
        max_new_tokens: longest answer in tokens; a longer one is cut after a whole sentence.
        seed: seed of the proposed names.
        decode_batch: most answers decoded at a time; "auto": as many as fit into memory.
        memory: most memory to take of the device, or of the machine for CPUs, such as 6GB.
    """

    person: str = free_text(MISSING)
    out: str = MISSING
    questions: str | None = None
    patterns: bool = True
    others: str | None = free_text(None)
    people: int = bounded(8, least=1, most=64)
    max_new_tokens: int = bounded(64, least=1)
    seed: int = random_seed()
    decode_batch: int | str = automatic()
    memory: str | None = None
    model: ModelSource = dataclasses.field(default_factory=ModelSource)
    data: QuestionFile = dataclasses.field(default_factory=QuestionFile)
    prompt: PromptConfig = dataclasses.field(default_factory=PromptConfig)


@dataclasses.dataclass(frozen=True)
class PlanConfig(Config):
    """The settings of `pmc plan`: those of the planned run, and a few more.

    Attributes:
        name: name of the plan, which it prints.
        topology: devices: a TPU slice (v5e:2x4), GPUs (h100:8), or cpu:8.
        memory: memory of a device (80GB), if it differs from the manufacturer's number.
        prompt_tokens: tokens of the longest prompt; responses get the rest of
            `training.max_length`.
        tries: most alternatives to compile if the run does not fit.
        out: JSON file for all numbers.
    """

    topology: str = "cpu:1"
    prompt_tokens: int = bounded(64, least=1)
    tries: int = bounded(6, least=0)
    out: str | None = None


@dataclasses.dataclass(frozen=True)
class WorldConfig:
    """The settings of `pmc world`.

    Attributes:
        out: a new or empty directory.
        seed: seed of all random numbers.
    """

    out: str = MISSING
    seed: int = random_seed(DEFAULT_SEED)


def _open_schema(schema: type) -> DictConfig:
    """`schema` as a node to compose into; OmegaConf makes frozen dataclasses read-only.

    What Hydra's groups provide has no default here, so that `???` in a YAML file requires it.
    """

    def unlock(node: DictConfig) -> None:
        OmegaConf.set_readonly(node, None)
        for key in [] if node._is_none() else node:
            child = node._get_node(key)
            if isinstance(child, DictConfig):
                unlock(child)

    node = OmegaConf.structured(schema)
    unlock(node)
    if "data" in node and "forget" in node.data:
        node.model.path = node.data.forget = node.data.retain = MISSING
    return node


for _name, _schema in (
    ("train_schema", Config),
    ("ask_schema", AskConfig),
    ("draft_schema", DraftConfig),
    ("evaluate_schema", EvaluateConfig),
    ("plan_schema", PlanConfig),
    ("world_schema", WorldConfig),
):
    ConfigStore.instance().store(name=_name, node=_open_schema(_schema))


ConfigStore.instance().store(
    group="adapter", name="lora_schema", node=_open_schema(LoRA), package="adapter"
)


def store_method(name: str) -> None:
    """Make `method=NAME` known to Hydra: a method of the package, or `package.module:Name`.

    Raises:
        UserError: if there is no such method.
    """
    node = _open_schema(resolve(name))
    stored = name if ":" in name else f"{name}_schema"  # which the file of the name extends
    ConfigStore.instance().store(group="method", name=stored, node=node, package="method")


for _name in methods():
    store_method(_name)


def config_directory() -> Path:
    """`configs/`, in the package when installed and beside it in the repository."""
    package = Path(__file__).parents[1]
    packaged = package / "configs"
    return packaged if packaged.is_dir() else package.parent / "configs"


TUNED = ("optimizer.learning_rate", "training.epochs")
"""The settings that decide most about a method's result; an experiment chooses them for PMC."""


def settings_of_another(
    config: Config, choices: Mapping[str, Any], overrides: Sequence[str], sources: Sequence[Path]
) -> str | None:
    """What to say of a run whose settings were chosen for another method.

    An experiment's settings are those of PMC, unless `settings/EXPERIMENT/METHOD.yaml` exists.

    Args:
        choices: the chosen name of every group, such as `experiment`.
        overrides: `KEY=VALUE` of the command line and of a sweep; who gives the learning rate
            has chosen it.
        sources: the directories of settings.

    Returns:
        A sentence without its final stop, or None if the settings are the method's own.
    """
    experiment, method = choices.get("experiment"), choices.get("method")
    own = Path("settings") / str(experiment) / f"{method}.yaml"
    given = {text.partition("=")[0].lstrip("+") for text in overrides}
    if not experiment or TUNED[0] in given:
        return None
    if any((source / own).is_file() for source in sources):
        return None
    values = {"optimizer.learning_rate": config.optimizer.learning_rate,
              "training.epochs": config.training.epochs}  # fmt: skip
    named = " and ".join(f"{key}={values[key]:g}" for key in TUNED if key not in given)
    return (
        f"the settings are those of PMC; method={method} has none of its own for "
        f"experiment={experiment}: {named}"
    )


def untuned_note(config: Config) -> str | None:
    """`settings_of_another` of the command that runs; None outside a command."""
    if not HydraConfig.initialized():
        return None
    hydra = HydraConfig.get()
    sources = [Path(s.path) for s in hydra.runtime.config_sources if s.schema == "file"]
    return settings_of_another(config, hydra.runtime.choices, hydra.overrides.task, sources)


def group_names(group: str) -> list[str]:
    """The names that a group of settings, such as `experiment`, can have."""
    return sorted(path.stem for path in (config_directory() / group).glob("*.yaml"))


def choices_of(name: str) -> dict[str, list[str]]:
    """The names that each of Hydra's groups can have in a command."""
    text = (config_directory() / f"{name}.yaml").read_text(encoding="utf-8")
    chosen: dict[str, str] = {}
    for entry in yaml.safe_load(text)["defaults"]:
        chosen |= entry if isinstance(entry, dict) else {}
    return {
        group: group_names(group)
        for group in chosen
        if " " not in group  # "override hydra/…", "optional settings"
    }


def settings_of_schema(schema: type, outside: Sequence[str] = ()) -> dict[str, Setting]:
    """Every setting of a command by its dotted key, with those of all methods.

    `outside` are methods from outside the package, `package.module:Name`.
    """
    found = dict(settings_of(schema))
    if any(key.startswith("method.") for key in found):
        for kind in [*methods().values(), *map(resolve, outside)]:
            found |= settings_of(kind, "method.")
    return found


def check_values(config: Any) -> None:
    """Check every value, and those that depend on each other.

    Raises:
        UserError: naming the key, its value and what was expected.
    """
    method = getattr(config, "method", None)
    if method is not None and method.name != type(method).name:
        raise UserError(f"method.name={method.name}: choose a method by method=NAME")
    settings.check(config)
    if method is not None:
        method.check()
