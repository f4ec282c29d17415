"""TOFU's metrics of a model: the scores of every set, and the two logs."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax

from pmc_jax.data.rows import EvaluationRow
from pmc_jax.decoding import Sampling
from pmc_jax.evaluation.context import EvaluationContext
from pmc_jax.evaluation.gradient_norms import gradient_norms
from pmc_jax.evaluation.likelihood import Pair, TokenScores, answer_scores
from pmc_jax.evaluation.membership import MOST_REFERENCE_AUC
from pmc_jax.evaluation.quality import Answer, answers
from pmc_jax.evaluation.tofu import (
    UTILITY_METRICS,
    Metric,
    SetScores,
    measured_on,
    tofu_log,
    tofu_summary,
)

GREEDY_STREAM = 5
EVAL_FILE, SUMMARY_FILE = "TOFU_EVAL.json", "TOFU_SUMMARY.json"


def benchmark_sets(context: EvaluationContext) -> dict[str, list[EvaluationRow]]:
    """The rows of each set by OpenUnlearning's name, without repetitions; a set may be empty."""
    found = {
        "forget": context.forget,
        "retain": context.controls.retain,
        "ra": context.sets.get("real_authors", ()),
        "wf": context.sets.get("world_facts", ()),
    }
    return {
        name: [row for row in dict.fromkeys(rows) if row.answer] for name, rows in found.items()
    }


def forget_rows(context: EvaluationContext) -> list[EvaluationRow]:
    """The forget questions of TOFU's log, in its order."""
    return benchmark_sets(context)["forget"]


def forget_truths(sets: Mapping[str, Sequence[EvaluationRow]]) -> list[EvaluationRow]:
    """The forget rows whose answers are known, in the order of TOFU's log."""
    return [row for row in dict.fromkeys(sets.get("forget", ())) if row.answer]


def right_paraphrases(name: str, rows: Sequence[EvaluationRow]) -> bool:
    """Whether paraphrased answers are scored: for TOFU's own authors, if all rows have one."""
    return name in ("forget", "retain") and all(row.paraphrased for row in rows)


def wrong_answers(rows: Sequence[EvaluationRow]) -> bool:
    """Whether wrong answers are scored: if all rows have some."""
    return all(row.perturbed for row in rows)


def encoded(
    context: EvaluationContext, rows: Sequence[EvaluationRow], texts: Sequence[str]
) -> list[Pair]:
    """One text per row as the answer to its question, as token ids."""
    template = context.model.template
    return [
        template.encode_pair(row.question, text, row.system)
        for row, text in zip(rows, texts, strict=True)
    ]


def scored(
    context: EvaluationContext, rows: Sequence[EvaluationRow], texts: Sequence[str]
) -> list[TokenScores]:
    """Scores of one text per row as the answer to its question."""
    pairs = encoded(context, rows, texts)
    return answer_scores(context.model, pairs, on_batch=context.on_batch)


def gradients_of(
    context: EvaluationContext, name: str, rows: Sequence[EvaluationRow], texts: Sequence[str]
) -> Sequence[float]:
    """The norms that membership inference compares; none if there is nothing to compare with."""
    if name not in ("forget", "holdout") or not holdout_rows(context):
        return ()
    pairs = encoded(context, rows, texts)
    return gradient_norms(context.model, pairs, on_batch=context.on_batch).tolist()


def generated(context: EvaluationContext, name: str, rows: Sequence[EvaluationRow]) -> list[Answer]:
    """The model's greedy answers."""
    config = context.evaluation
    found = answers(
        context.model, [(name, row) for row in rows], Sampling(temperature=0.0),
        jax.random.fold_in(context.key, GREEDY_STREAM),
        max_length=context.max_length, max_new_tokens=config.max_new_tokens,
        decode_batch=config.decode_batch, on_batch=context.on_batch,
    )  # fmt: skip
    return [group[0] for group in found]


def set_scores(
    context: EvaluationContext, name: str, rows: Sequence[EvaluationRow], *, answered: bool = True
) -> SetScores:
    """All scores of one set; if `answered` is false, those of the right answers alone."""
    texts = [str(row.answer) for row in rows]
    right = scored(context, rows, texts)
    norms = gradients_of(context, name, rows, texts)
    if not answered:
        return SetScores(right, [], [], [], texts, gradient_norms=norms)
    paraphrased = []
    if right_paraphrases(name, rows):
        paraphrased = scored(context, rows, [str(row.paraphrased) for row in rows])
    perturbed: list[list[TokenScores]] = []
    if wrong_answers(rows):
        repeated = [row for row in rows for _ in row.perturbed]
        flat = iter(scored(context, repeated, [text for row in rows for text in row.perturbed]))
        perturbed = [[next(flat) for _ in row.perturbed] for row in rows]
    return SetScores(
        right, paraphrased, perturbed, generated(context, name, rows), texts,
        paraphrased_texts=[str(row.paraphrased) for row in rows] if paraphrased else (),
        perturbed_texts=[row.perturbed for row in rows] if perturbed else (),
        gradient_norms=norms,
    )  # fmt: skip


def missing_metrics(context: EvaluationContext, log: dict[str, Metric]) -> dict[str, str]:
    """TOFU's metrics that are not in the log, with the reasons."""
    found = {}
    if "forget_truth_ratio" not in log:
        found["truth ratio of forget questions, forget quality"] = (
            "the forget rows have no paraphrased or no perturbed answers"
        )
    elif log["forget_quality"]["agg_value"] is None:
        found["forget quality"] = "no truth ratios of a model that never saw the forget set"
        found["forget quality"] += (
            "; give retain_logs=TOFU_EVAL.json" if context.retain_log is None else " in retain_logs"
        )
    if "mia_loss" not in log:
        found["membership inference, PrivLeak"] = "the data has no holdout set"
    elif log["privleak"]["agg_value"] is None and context.retain_log is not None:
        found["PrivLeak"] = (
            "the model of retain_logs, which never saw the forget set, tells it from the holdout "
            f"set by itself (AUC {context.retain_log.min_k_auc:.4g}, more than "
            f"{MOST_REFERENCE_AUC})"
        )
    lacking = [name for name in UTILITY_METRICS if name not in log]
    if lacking:
        found["model utility"] = f"the data allows no {', '.join(lacking)}"
    return found


def tofu_part(context: EvaluationContext) -> dict[str, Any]:
    """All of TOFU's metrics that the data allows; the two logs are in `files`."""
    sets = {
        name: set_scores(context, name, rows)
        for name, rows in benchmark_sets(context).items()
        if rows
    }
    holdout = (
        set_scores(context, "holdout", holdout_rows(context), answered=False)
        if holdout_rows(context)
        else None
    )
    log = tofu_log(sets, holdout, context.references, context.retain_log)
    for name in {"forget_truth_ratio", "mia_min_k"} & log.keys():
        # Beside what OpenUnlearning reads, for who reads this as the log of a retain model.
        log[name]["measured_on"] = measured_on(forget_rows(context), context.model.template)
    summary = tofu_summary(log)
    return {
        "summary": summary,
        "privleak_reference": None if context.retain_log is None else context.retain_log.min_k_auc,
        "missing": missing_metrics(context, log),
        "files": {EVAL_FILE: log, SUMMARY_FILE: summary},
    }


def reference_scores(context: EvaluationContext) -> tuple[list[TokenScores], list[TokenScores]]:
    """`EvaluationContext.references`, from the context of the reference model."""
    forget, holdout = benchmark_sets(context)["forget"], holdout_rows(context)
    return (
        scored(context, forget, [str(row.answer) for row in forget]),
        scored(context, holdout, [str(row.answer) for row in holdout]),
    )


def holdout_rows(context: EvaluationContext) -> list[EvaluationRow]:
    """The held-out questions whose answers are known."""
    return [row for row in context.controls.holdout if row.answer]


def tofu_work(context: EvaluationContext) -> int:
    """How many questions and answers `tofu_part` gives to the model."""
    holdout = len(holdout_rows(context))
    total = 2 * holdout
    for name, rows in benchmark_sets(context).items():
        total += 2 * len(rows)
        total += len(rows) if name == "forget" and holdout else 0
        total += len(rows) if right_paraphrases(name, rows) else 0
        total += sum(len(row.perturbed) for row in rows) if wrong_answers(rows) else 0
    return total
