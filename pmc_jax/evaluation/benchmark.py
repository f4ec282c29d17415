"""TOFU's metrics of a model under examination: its scores of every set, and the two logs."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax

from pmc_jax.data.rows import EvaluationRow
from pmc_jax.decoding import Sampling
from pmc_jax.evaluation.examination import Examination
from pmc_jax.evaluation.likelihood import TokenScores, answer_scores
from pmc_jax.evaluation.quality import Answer, answers
from pmc_jax.evaluation.tofu import UTILITY_METRICS, Metric, SetScores, tofu_log, tofu_summary

GREEDY_STREAM = 5
EVAL_FILE, SUMMARY_FILE = "TOFU_EVAL.json", "TOFU_SUMMARY.json"


def benchmark_sets(x: Examination) -> dict[str, list[EvaluationRow]]:
    """The rows of each set by OpenUnlearning's name, every row once; a set may be empty."""
    found = {
        "forget": x.forget,
        "retain": x.controls.retain,
        "ra": x.sets.get("real_authors", ()),
        "wf": x.sets.get("world_facts", ()),
    }
    return {
        name: [row for row in dict.fromkeys(rows) if row.answer] for name, rows in found.items()
    }


def forget_truths(sets: Mapping[str, Sequence[EvaluationRow]]) -> list[str]:
    """The right answers to the forget questions, in the order of TOFU's log."""
    return [row.answer for row in dict.fromkeys(sets.get("forget", ())) if row.answer]


def right_paraphrases(name: str, rows: Sequence[EvaluationRow]) -> bool:
    """Whether the right answers in other words are scored: if all rows have one, and are ours."""
    return name in ("forget", "retain") and all(row.paraphrased for row in rows)


def wrong_answers(rows: Sequence[EvaluationRow]) -> bool:
    """Whether the wrong answers are scored: if all rows have some."""
    return all(row.perturbed for row in rows)


def scored(
    x: Examination, rows: Sequence[EvaluationRow], texts: Sequence[str]
) -> list[TokenScores]:
    """Scores of one text a row as the answer to its question."""
    template = x.respondent.template
    pairs = [
        (template.encode_prompt(row.question, row.system), template.encode_answer(text))
        for row, text in zip(rows, texts, strict=True)
    ]
    return answer_scores(x.respondent, pairs, on_batch=x.on_batch)


def generated(x: Examination, name: str, rows: Sequence[EvaluationRow]) -> list[Answer]:
    """The model's greedy answers."""
    cfg = x.evaluation
    found = answers(
        x.respondent, [(name, row) for row in rows], Sampling(temperature=0.0),
        jax.random.fold_in(x.key, GREEDY_STREAM), max_new_tokens=cfg.max_new_tokens,
        batch_rows=cfg.rows, on_batch=x.on_batch,
    )  # fmt: skip
    return [group[0] for group in found]


def set_scores(
    x: Examination, name: str, rows: Sequence[EvaluationRow], *, answered: bool = True
) -> SetScores:
    """All scores of one set; without `answered` only those of the right answers."""
    texts = [str(row.answer) for row in rows]
    right = scored(x, rows, texts)
    if not answered:
        return SetScores(right, [], [], [], texts)
    paraphrased = []
    if right_paraphrases(name, rows):
        paraphrased = scored(x, rows, [str(row.paraphrased) for row in rows])
    perturbed: list[list[TokenScores]] = []
    if wrong_answers(rows):
        repeated = [row for row in rows for _ in row.perturbed]
        flat = iter(scored(x, repeated, [text for row in rows for text in row.perturbed]))
        perturbed = [[next(flat) for _ in row.perturbed] for row in rows]
    return SetScores(right, paraphrased, perturbed, generated(x, name, rows), texts)


def missing_metrics(x: Examination, log: dict[str, Metric]) -> dict[str, str]:
    """Which of TOFU's metrics are not in the log, and why."""
    found = {}
    if "forget_truth_ratio" not in log:
        found["truth ratio of forget questions, forget quality"] = (
            "the forget rows have no paraphrased or no perturbed answers"
        )
    elif log["forget_quality"]["agg_value"] is None:
        found["forget quality"] = "no truth ratios of a model that never saw the forget set"
        found["forget quality"] += (
            "; give retain_logs=TOFU_EVAL.json" if x.retain_log is None else " in retain_logs"
        )
    if "mia_loss" not in log:
        found["membership inference, PrivLeak"] = "the data has no holdout set"
    lacking = [name for name in UTILITY_METRICS if name not in log]
    if lacking:
        found["model utility"] = f"the data allows no {', '.join(lacking)}"
    return found


def tofu_part(x: Examination) -> dict[str, Any]:
    """TOFU's metrics as far as the data allows; the logs go into files of their own."""
    sets = {name: set_scores(x, name, rows) for name, rows in benchmark_sets(x).items() if rows}
    holdout = set_scores(x, "holdout", holdout_rows(x), answered=False) if holdout_rows(x) else None
    log = tofu_log(sets, holdout, x.references, x.retain_log)
    summary = tofu_summary(log)
    return {
        "summary": summary,
        "privleak_reference": None if x.retain_log is None else x.retain_log.min_k_auc,
        "missing": missing_metrics(x, log),
        "files": {EVAL_FILE: log, SUMMARY_FILE: summary},
    }


def reference_scores(x: Examination) -> tuple[list[TokenScores], list[TokenScores]]:
    """What `Examination.references` of another model are, if `x` is of the reference model."""
    forget, holdout = benchmark_sets(x)["forget"], holdout_rows(x)
    return (
        scored(x, forget, [str(row.answer) for row in forget]),
        scored(x, holdout, [str(row.answer) for row in holdout]),
    )


def holdout_rows(x: Examination) -> list[EvaluationRow]:
    """The held-out rows whose answers are known."""
    return [row for row in x.controls.holdout if row.answer]


def tofu_work(x: Examination) -> int:
    """How many questions and answers `tofu_part` puts to the model."""
    total = len(holdout_rows(x))
    for name, rows in benchmark_sets(x).items():
        total += 2 * len(rows)
        total += len(rows) if right_paraphrases(name, rows) else 0
        total += sum(len(row.perturbed) for row in rows) if wrong_answers(rows) else 0
    return total
