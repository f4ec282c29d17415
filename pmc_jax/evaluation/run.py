"""Evaluating a model in memory."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from pmc_jax.data import Controls, Dataset
from pmc_jax.data.dataset import expected_dataset
from pmc_jax.evaluation.benchmark import reference_scores
from pmc_jax.evaluation.config import EvaluateConfig
from pmc_jax.evaluation.context import EvaluationContext, RobustnessConfig
from pmc_jax.evaluation.inputs import check_prompts, evaluation_warnings
from pmc_jax.evaluation.measure import measure_part
from pmc_jax.evaluation.models import facts_of
from pmc_jax.evaluation.parts import SUITES
from pmc_jax.evaluation.quality import EvaluationConfig
from pmc_jax.evaluation.relearning import relearner
from pmc_jax.evaluation.robustness import check_robustness
from pmc_jax.evaluation.summary import Parts, summarise
from pmc_jax.evaluation.tofu import RetainLog, read_retain_log
from pmc_jax.language_model import LanguageModel, expected_model
from pmc_jax.model import on_mesh
from pmc_jax.model.trainable import LoRA, trainable
from pmc_jax.reporting.side_by_side import comparison_table
from pmc_jax.reporting.verdict import verdict_lines
from pmc_jax.runtime.progress import warn
from pmc_jax.settings import check, flat
from pmc_jax.signatures import checked

PREFIX = "The answer is:"


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What an evaluation measured.

    Attributes:
        summary: the measures of all models and what figures show; the content of the command's
            `summary.json`.
        parts: the full result of each part, by model and part: single answers, recalls,
            certificates, TOFU's logs.
    """

    summary: Mapping[str, Any] = dataclasses.field(repr=False)
    parts: Mapping[str, Parts] = dataclasses.field(repr=False)

    @property
    def measures(self) -> dict[str, float | None]:
        """The measures of the model under evaluation by name.

        `unlearn_quality` and `utility` are in percent; all others run from 0 to 1.
        """
        return dict(self.summary["measures"][self.summary["models"][0]])

    @property
    def before(self) -> dict[str, float | None] | None:
        """The measures of the model before unlearning; None if it was not given."""
        before = self.summary["before"]
        return None if before is None else dict(self.summary["measures"][before])

    @property
    def lacking(self) -> dict[str, str]:
        """What was not measured, with the reasons."""
        return dict(self.summary["lacking"])

    @property
    def verdict(self) -> Mapping[str, Any]:
        """Whether the forget questions are forgotten (`verdicts.verdict`)."""
        return self.summary["verdict"]

    def table(self, width: int = 80) -> str:
        """The verdict, and all measures of all models as a table of at most `width` columns."""
        return f"{verdict_lines(self.verdict, width)}\n\n{comparison_table(self.summary, width)}"

    def to_dict(self) -> dict[str, Any]:
        """The summary and the parts as one JSON object."""
        return {**self.summary, "parts": {model: dict(own) for model, own in self.parts.items()}}


@checked(
    model=expected_model, before=expected_model, reference=expected_model,
    dataset=expected_dataset,
)  # fmt: skip
def evaluate(
    model: LanguageModel,
    dataset: Dataset,
    *,
    before: LanguageModel | None = None,
    suite: str = "quick",
    evaluation: EvaluationConfig | None = None,
    robustness: RobustnessConfig | None = None,
    adapter: LoRA | None = None,
    prefix: str | None = PREFIX,
    confidence: float = 0.99,
    max_length: int = 200,
    controls: Controls | None = None,
    retain_log: RetainLog | str | Path | None = None,
    reference: LanguageModel | None = None,
    seed: int = 0,
) -> Evaluation:
    """Measure what a model still knows of the forget set, and what else it knows.

    Args:
        model: the model under evaluation.
        dataset: the questions, with answers where they are known.
        before: the model before unlearning, for comparison.
        suite: the parts that are measured: a key of `SUITES`.
        evaluation: how answers are decoded; None: the defaults.
        robustness: how the model is changed before it is measured again; None: the defaults.
        adapter: an adapter that the relearning attack trains; None: it trains the weights.
        prefix: the text that the prefilling attack forces every answer to begin with.
        confidence: confidence of every certified bound.
        max_length: the most tokens of prompt and answer together.
        controls: what to compare with besides the evaluation sets; None: the data set's own.
        retain_log: TOFU's metrics of a model that never saw the forget set, or the path of its
            `TOFU_EVAL.json`.
        reference: a model to compare with in membership inference.
        seed: seed of the sampling.

    Raises:
        UserError: for an unknown suite, a value out of bounds, a question that leaves no room for
            an answer, or a file that is not a retain log.
    """
    check(EvaluateConfig(suite=suite, confidence=confidence, max_length=max_length, seed=seed))
    evaluation = evaluation or EvaluationConfig()
    check(evaluation, "evaluation.")
    robustness = robustness or RobustnessConfig()
    check(robustness, "robustness.")
    controls = dataset.controls if controls is None else controls
    check_robustness(robustness)
    if adapter is not None:
        check(adapter, "adapter.")
        trainable(model.config, adapter=adapter)  # an error now rather than later
    if isinstance(retain_log, str | Path):
        retain_log = read_retain_log(Path(retain_log).expanduser())
    models = {"model": model} if before is None else {"after": model, "before": before}
    for other in filter(None, (model, before, reference)):
        check_prompts(other, dataset, controls, suite=suite, max_length=max_length, prefix=prefix)

    named = {**models, **({} if reference is None else {"reference": reference})}
    warnings = evaluation_warnings(dataset, controls, named, retain_log, max_length)
    warn(warnings)

    def context(of: LanguageModel) -> EvaluationContext:
        can_train = not isinstance(of.params["layers"], tuple)
        return EvaluationContext(
            of.for_decoding(), dataset.evaluation, evaluation, max_length, prefix, confidence,
            jax.random.key(seed), controls=controls, retain_log=retain_log, robustness=robustness,
            relearn=relearner(lambda: of, robustness, seed, adapter) if can_train else None,
        )  # fmt: skip

    references = None
    if reference is not None and "tofu" in SUITES[suite]:
        with on_mesh(reference.mesh):
            references = reference_scores(context(reference))
    parts: dict[str, Parts] = {}
    for name, each in models.items():
        with on_mesh(each.mesh):
            given = dataclasses.replace(context(each), references=references)
            parts[name] = {part: measure_part(given, part, name) for part in SUITES[suite]}
    facts = {name: facts_of(each, str(each.directory)) for name, each in models.items()}
    settings = {
        "suite": suite, "prefix": prefix, "confidence": confidence, "max_length": max_length,
        "seed": seed, "evaluation": dataclasses.asdict(evaluation),
        "robustness": dataclasses.asdict(robustness),
        **({} if adapter is None else {"adapter": dataclasses.asdict(adapter)}),
    }  # fmt: skip
    found = summarise(parts, None if before is None else "before", facts)
    summary = {"suite": suite, **found, "settings": flat(settings), "warnings": warnings}
    return Evaluation(summary, parts)
