"""The settings of an evaluation command."""

import dataclasses
from typing import Any

from pmc_jax.data import DataConfig
from pmc_jax.data.prompt_config import PromptConfig
from pmc_jax.evaluation.context import RobustnessConfig
from pmc_jax.evaluation.parts import SUITES
from pmc_jax.evaluation.quality import EvaluationConfig
from pmc_jax.language_model import ModelSource
from pmc_jax.model.trainable import LoRA
from pmc_jax.runtime.processes import DistributedConfig
from pmc_jax.settings import bounded, free_text, one_of, path_to, random_seed


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """The settings of `pmc evaluate`.

    Attributes:
        name: files go to the directory `evaluations_dir`/`name`.
        evaluations_dir: the directory of all evaluations.
        seed: seed of all random numbers.
        overwrite: replace an evaluation that has the same name.
        mesh: devices: "auto", or DATAxMODEL. 4x2 shards batches 4 ways and weights 2 ways.
        memory: most memory to take of a device, or of the machine for CPUs, such as 6GB.
        suite: which measures to take.
        compare: one model or a list; the first is the model before unlearning.
        prefix: the text that the prefilling attack forces every answer to begin with.
        confidence: confidence of certified bounds.
        max_length: most tokens of prompt and answer together.
        retain_logs: TOFU_EVAL.json of a model that has never seen the forget set.
        reference_model: for membership inference: a model that has never seen the forget set.
        keep_truth: keep true answers to forget questions in TOFU_EVAL.json.
        redact: hide true answers and secrets in the report.
        adapter: an adapter that the relearning attack trains; null: it trains the weights.
    """

    name: str = "evaluation"
    evaluations_dir: str = "evaluations"
    seed: int = random_seed()
    overwrite: bool = False
    mesh: str = "auto"
    memory: str | None = None
    suite: str = one_of("paper", *SUITES)
    compare: Any = path_to(None)
    prefix: str | None = free_text("The answer is:")
    confidence: float = bounded(0.99, least=0.75, below=1)
    max_length: int = bounded(200, least=2)
    retain_logs: str | None = path_to(None)
    reference_model: str | None = path_to(None)
    keep_truth: bool = False
    redact: bool = False
    model: ModelSource = dataclasses.field(default_factory=ModelSource)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    prompt: PromptConfig = dataclasses.field(default_factory=PromptConfig)
    evaluation: EvaluationConfig = dataclasses.field(default_factory=EvaluationConfig)
    adapter: LoRA | None = None
    robustness: RobustnessConfig = dataclasses.field(default_factory=RobustnessConfig)
    distributed: DistributedConfig = dataclasses.field(default_factory=DistributedConfig)
