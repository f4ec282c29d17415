"""The TOFU benchmark's measures (Maini et al. 2024), with OpenUnlearning's definitions.

`tofu_log` returns what OpenUnlearning writes as `TOFU_EVAL.json`: one entry per metric, with
`agg_value` and, by row, `value_by_index`. `tofu_summary` returns what OpenUnlearning writes as
`TOFU_SUMMARY.json`. `read_retain_log` reads a log of the same layout.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats
from jaxtyping import Float

from pmc_jax.data.encode import digest
from pmc_jax.data.files import read_object
from pmc_jax.data.prompts import PromptTemplate
from pmc_jax.data.rows import EvaluationRow
from pmc_jax.errors import UserError
from pmc_jax.evaluation.likelihood import TokenScores
from pmc_jax.evaluation.membership import (
    DEFAULT_REFERENCE_AUC,
    loss_score,
    membership_auc,
    min_k_plus_plus_score,
    min_k_score,
    privacy_leakage,
    reference_score,
    zlib_score,
)
from pmc_jax.evaluation.memorisation import exact_memorisation, extraction_strength
from pmc_jax.evaluation.quality import Answer
from pmc_jax.text.rouge import rouge_l_recall, rouge_words

EPSILON = 1e-10
SETS = ("forget", "retain", "ra", "wf")
"""OpenUnlearning's names of the sets; ra: real authors, wf: world facts."""

UTILITY_METRICS = (
    "retain_Q_A_Prob",
    "retain_Q_A_ROUGE",
    "retain_Truth_Ratio",
    "ra_Q_A_Prob_normalised",
    "ra_Q_A_ROUGE",
    "ra_Truth_Ratio",
    "wf_Q_A_Prob_normalised",
    "wf_Q_A_ROUGE",
    "wf_Truth_Ratio",
)
"""The metrics whose harmonic mean is model utility."""

RETAIN_LOG_LAYOUT = (
    "OpenUnlearning's TOFU_EVAL.json, an object with "
    '"forget_truth_ratio": {"value_by_index": {"0": {"score": …}, …}} or '
    '"mia_min_k": {"agg_value": …}'
)

SIDES = ("forget", "holdout")
"""The answers that a membership attack compares, by their names in its entry of the log."""

FORGET_ROUGE = "forget_Q_A_ROUGE"
"""The metric whose rows hold the forget questions and the answers to them."""

FORGET_TEXTS = {
    FORGET_ROUGE: "answer",
    "forget_Q_A_PARA_ROUGE": "paraphrased",
    "forget_Q_A_PERT_ROUGE": "perturbed",
}
"""The metrics whose rows hold texts of forget questions, and the fields of the rows that they are
compared with."""

Metric = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class SetScores:
    """The scores of one evaluation set under one model; empty if the data lacks them.

    Attributes:
        answers: scores of the right answers.
        paraphrased: scores of the paraphrased right answers.
        perturbed: scores of each row's wrong answers.
        generated: the model's own greedy answers.
        texts: the right answers.
        paraphrased_texts, perturbed_texts: as `paraphrased` and `perturbed`.
        gradient_norms: of the right answers, for membership inference.
    """

    answers: Sequence[TokenScores]
    paraphrased: Sequence[TokenScores]
    perturbed: Sequence[Sequence[TokenScores]]
    generated: Sequence[Answer]
    texts: Sequence[str]
    paraphrased_texts: Sequence[str] = ()
    perturbed_texts: Sequence[Sequence[str]] = ()
    gradient_norms: Sequence[float] = ()


@dataclasses.dataclass(frozen=True)
class RetainLog:
    """What forget quality and PrivLeak need from a model that never saw the forget set.

    Attributes:
        truth_ratios: truth ratios of the forget questions; empty if the log has none.
        min_k_auc: AUC of the min-k attack; None if the log has none.
        indices: the row numbers of the truth ratios, as the log has them; None: 0, 1, ….
        min_k_rows: the numbers of forget and of holdout answers behind the AUC, if known.
        inputs: what was asked, by row number: the question, or the prompt with it.
        measured_on: `measured_on` of the rows and the prompt, in logs of `pmc_jax`.
    """

    truth_ratios: tuple[float, ...]
    min_k_auc: float | None
    indices: tuple[str, ...] | None = None
    min_k_rows: tuple[int, int] | None = None
    inputs: Mapping[str, str] = dataclasses.field(default_factory=dict)
    measured_on: Mapping[str, str] | None = None


def probability(scores: TokenScores) -> float:
    """exp(−NLL/L), the geometric mean of the probabilities of the L tokens."""
    return float(np.exp(-scores.loss))


def normalised_probability(
    right: Float[np.ndarray, " rows"], wrong: Sequence[Float[np.ndarray, " _"]]
) -> Float[np.ndarray, " rows"]:
    """The right answer's probability divided by the sum over right and wrong answers.

    Rows may have different numbers of wrong answers.
    """
    sums = np.array([row.sum() for row in wrong])
    return right / (right + sums + EPSILON)


def truth_ratios(
    right: Float[np.ndarray, " rows"], wrong: Sequence[Float[np.ndarray, " _"]]
) -> Float[np.ndarray, " rows"]:
    """exp(−mean loss of the wrong answers) / exp(−loss of the right one), from losses."""
    means = np.array([row.mean() for row in wrong])
    return np.exp(-means) / (np.exp(-right) + EPSILON)


def truth_shares(
    right: Float[np.ndarray, " rows"], wrong: Sequence[Float[np.ndarray, " _"]]
) -> Float[np.ndarray, " rows"]:
    """p/(p + w), with p = exp(−loss of the right answer), w = exp(−mean loss of the wrong ones).

    OpenUnlearning's truth ratio with the aggregator `prob_mean`, from losses.
    """
    likely, unlikely = np.exp(-right), np.exp(-np.array([row.mean() for row in wrong]))
    return likely / (likely + unlikely + EPSILON)


def forgotten_truth_ratio(ratios: Float[np.ndarray, " rows"]) -> float:
    """Mean of min(R, 1/R): 1 when right and wrong answers are equally likely."""
    return float(np.mean(np.minimum(ratios, 1 / (ratios + EPSILON))))


def kept_truth_ratio(ratios: Float[np.ndarray, " rows"]) -> float:
    """Mean of max(0, 1 − R): 1 when only the right answers are likely."""
    return float(np.mean(np.maximum(0, 1 - ratios)))


def forget_quality(ratios: Sequence[float], retain_ratios: Sequence[float]) -> float:
    """p-value of the two-sample Kolmogorov–Smirnov test between two models' truth ratios."""
    return float(scipy.stats.ks_2samp(ratios, retain_ratios).pvalue)


def model_utility(values: Sequence[float]) -> float:
    """Harmonic mean; 0 if any value is 0."""
    return float(scipy.stats.hmean(values))


def read_retain_log(path: Path) -> RetainLog:
    """Read the retain model's numbers from its `TOFU_EVAL.json`.

    Raises:
        UserError: if there is no such file, or it does not have this layout.
    """
    log = read_object(path, expected=RETAIN_LOG_LAYOUT, finite=True)  # others write NaN
    try:
        rows = (log.get("forget_truth_ratio") or {}).get("value_by_index") or {}
        scores = {index: row["score"] for index, row in rows.items()}
        attack = log.get("mia_min_k") or {}
        auc = attack.get("agg_value")
        sides = [len((attack.get(k) or {}).get("value_by_index") or {}) for k in SIDES]
        asked = (log.get(FORGET_ROUGE) or {}).get("value_by_index") or {}
        inputs = {i: row["input"] for i, row in asked.items() if isinstance(row.get("input"), str)}
        stamp = (log.get("forget_truth_ratio") or attack).get("measured_on")
    except (KeyError, TypeError, AttributeError):
        raise UserError(f"{path}: not such a log; expected {RETAIN_LOG_LAYOUT}") from None
    places = {f"forget_truth_ratio, row {index}": score for index, score in scores.items()}
    for place, value in (places | ({} if auc is None else {"mia_min_k": auc})).items():
        if not isinstance(value, int | float) or not math.isfinite(value):
            shown = "null or NaN" if value is None else repr(value)
            raise UserError(
                f"{path}: {place}: {shown} is not a number; expected {RETAIN_LOG_LAYOUT}"
            )
    ratios = tuple(map(float, scores.values()))
    found = RetainLog(
        ratios,
        None if auc is None else float(auc),
        tuple(scores),
        (sides[0], sides[1]) if all(sides) else None,
        inputs,
        stamp if isinstance(stamp, dict) else None,
    )
    if not ratios and found.min_k_auc is None:
        raise UserError(
            f"{path}: holds neither forget_truth_ratio nor mia_min_k; expected {RETAIN_LOG_LAYOUT}"
        )
    return found


def measured_on(rows: Sequence[EvaluationRow], template: PromptTemplate) -> dict[str, str]:
    """What metrics of forget questions depend on besides the model.

    A hash of the rows, and the text of the prompt.
    """
    return {
        "questions": digest([dataclasses.astuple(row) for row in rows]),
        "prompt": template.text,
    }


def plain_text(text: str) -> str:
    """A text without the parts that `clean_up_tokenization_spaces` changes in decoding."""
    return "".join(text.split()).casefold().replace("donot", "don't")


def check_retain_log(
    log: RetainLog, rows: Sequence[EvaluationRow], holdout: int, template: PromptTemplate
) -> list[str]:
    """Check that a log has these forget questions; warn if it has another prompt.

    Args:
        rows: the forget questions, in the order of the logs.
        holdout: how many holdout questions there are.

    Raises:
        UserError: if number, row numbers or texts of the questions differ.
    """
    expected = "expected the log of a model that was measured on the same rows"
    count = len(rows)
    if log.truth_ratios and len(log.truth_ratios) != count:
        raise UserError(
            f"retain_logs: has truth ratios of {len(log.truth_ratios)} forget questions, but the "
            f"data has {count}; {expected}"
        )
    if log.truth_ratios and log.indices is not None:
        unknown = sorted(set(log.indices) - set(map(str, range(count))))
        if unknown:
            raise UserError(
                f"retain_logs: has a row {unknown[0]}, but the data's {count} forget questions are "
                f"numbered from 0; {expected}"
            )
    if log.min_k_rows is not None and log.min_k_rows != (count, holdout):
        mine, theirs = f"{count} and {holdout}", " and ".join(map(str, log.min_k_rows))
        raise UserError(
            f"retain_logs: mia_min_k is of {theirs} forget and holdout answers, but the data has "
            f"{mine}; {expected}"
        )
    for index, asked in log.inputs.items():
        row = rows[int(index)] if index.isdecimal() and int(index) < count else None
        if row is None or plain_text(row.question) not in plain_text(asked):
            raise UserError(
                f"retain_logs: row {index} asks {asked[-80:]!r}, which is not the data's forget "
                f"question of this number; {expected}"
            )
    if log.measured_on is not None:
        own = measured_on(rows, template)
        if log.measured_on.get("questions") != own["questions"]:
            raise UserError(f"retain_logs: was measured on other forget rows; {expected}")
        same = log.measured_on.get("prompt") == own["prompt"]
    else:
        same = all(asked_alike(asked, rows[int(i)], template) for i, asked in log.inputs.items())
    if same:
        return []
    return ["retain_logs was measured with another prompt, so its numbers may not be comparable"]


def asked_alike(asked: str, row: EvaluationRow, template: PromptTemplate) -> bool:
    """Whether what a log says was asked is the row's question alone, or this prompt."""
    ids = template.encode_prompt(row.question, row.system)
    prompt = template.tokenizer.decode(ids, skip_special_tokens=True)
    return plain_text(asked) in (plain_text(row.question), plain_text(str(prompt)))


def by_index(values: Sequence[Any]) -> dict[str, Any]:
    """Values by row number, as in the logs."""
    return {str(index): value for index, value in enumerate(values)}


def _aggregated(rows: Sequence[Mapping[str, Any]], key: str) -> Metric:
    """A metric whose value is the mean of `key` over rows; a list counts with its mean."""
    known = [np.mean(row[key]) for row in rows if row[key] is not None]
    value = float(np.mean(known)) if known else None
    return {"agg_value": value, "value_by_index": by_index(rows)}


def _probabilities(scores: Sequence[TokenScores]) -> Metric:
    return _aggregated([{"prob": probability(s), "avg_loss": s.loss} for s in scores], "prob")


def _wrong_probabilities(rows: Sequence[Sequence[TokenScores]]) -> Metric:
    return _aggregated(
        [
            {"prob": [probability(s) for s in row], "avg_loss": [s.loss for s in row]}
            for row in rows
        ],
        "prob",
    )


def rouge_rows(answer: Answer, texts: Sequence[str], *, keep_truth: bool) -> dict[str, Any]:
    """The fields of `rouge_row` against each of several texts, as lists."""
    rows = [rouge_row(answer, text, keep_truth=keep_truth) for text in texts]
    return {key: [row[key] for row in rows] for key in rows[0]}


def rouge_row(answer: Answer, truth: str, *, keep_truth: bool) -> dict[str, Any]:
    """ROUGE-1 recall, ROUGE-L recall and F1, and the texts."""
    wanted, given = rouge_words(truth), rouge_words(answer.text)
    common = sum(min(wanted.count(word), given.count(word)) for word in set(wanted))
    recall, precision = rouge_l_recall(truth, answer.text), rouge_l_recall(answer.text, truth)
    both = precision + recall
    return {
        "rouge1_recall": common / len(wanted) if wanted else 0.0,
        "rougeL_f1": 2 * precision * recall / both if both else 0.0,
        "rougeL_recall": recall,
        "input": answer.question,
        "ground_truth": truth if keep_truth else None,
        "generation": answer.text,
    }


def _ratio_metrics(
    name: str, right: Metric, wrong: Metric, aggregate: Callable[[Any], float]
) -> dict[str, Metric]:
    """The truth ratio, and that of the aggregator `prob_mean`."""
    rows = zip(right["value_by_index"].values(), wrong["value_by_index"].values(), strict=True)
    losses = [(row["avg_loss"], np.array(other["avg_loss"])) for row, other in rows]
    both = np.array([r for r, _ in losses]), [w for _, w in losses]

    def metric(values: Float[np.ndarray, " rows"], value: float) -> Metric:
        scores = [{"score": float(value)} for value in values]
        return {"agg_value": value, "value_by_index": by_index(scores)}

    ratios, shares = truth_ratios(*both), truth_shares(*both)
    return {
        name: metric(ratios, aggregate(ratios)),
        f"{name}_prob_mean": metric(shares, float(shares.mean())),
    }


def _set_metrics(name: str, scores: SetScores) -> dict[str, Metric]:
    """Probability, ROUGE and truth ratio of one set, if its rows allow them."""
    found = {f"{name}_Q_A_Prob": _probabilities(scores.answers)}
    found[f"{name}_Q_A_ROUGE"] = _aggregated(
        [
            rouge_row(answer, truth, keep_truth=name != "forget")
            for answer, truth in zip(scores.generated, scores.texts, strict=True)
        ],
        "rougeL_recall",
    )
    public = name in ("ra", "wf")
    keep = name != "forget"
    if scores.paraphrased and not public:
        found[f"{name}_Q_A_PARA_Prob"] = _probabilities(scores.paraphrased)
        pairs = zip(scores.generated, scores.paraphrased_texts, strict=True)
        rows = [rouge_row(answer, text, keep_truth=keep) for answer, text in pairs]
        found[f"{name}_Q_A_PARA_ROUGE"] = _aggregated(rows, "rougeL_recall")
    if scores.perturbed and not public:
        several = zip(scores.generated, scores.perturbed_texts, strict=True)
        rows = [rouge_rows(answer, texts, keep_truth=keep) for answer, texts in several]
        found[f"{name}_Q_A_PERT_ROUGE"] = _aggregated(rows, "rougeL_recall")
    right = found.get(f"{name}_Q_A_Prob" if public else f"{name}_Q_A_PARA_Prob")
    if right is None or not scores.perturbed:
        return found
    wrong = found[f"{name}_Q_A_PERT_Prob"] = _wrong_probabilities(scores.perturbed)
    if name == "forget":
        return found | _ratio_metrics("forget_truth_ratio", right, wrong, forgotten_truth_ratio)
    found |= _ratio_metrics(f"{name}_Truth_Ratio", right, wrong, kept_truth_ratio)
    if public:
        shares = normalised_probability(
            np.array([row["prob"] for row in right["value_by_index"].values()]),
            [np.array(row["prob"]) for row in wrong["value_by_index"].values()],
        )
        found[f"{name}_Q_A_Prob_normalised"] = _aggregated(
            [{"prob": float(share)} for share in shares], "prob"
        )
    return found


def _membership(name: str, forget: Sequence[float], holdout: Sequence[float]) -> dict[str, Metric]:
    auc = membership_auc(forget, holdout)

    def side(values: Sequence[float]) -> Metric:
        return _aggregated([{"score": float(value)} for value in values], "score")

    return {name: {"forget": side(forget), "holdout": side(holdout), "auc": auc, "agg_value": auc}}


def membership_metrics(
    forget: SetScores,
    holdout: SetScores,
    references: tuple[Sequence[TokenScores], Sequence[TokenScores]] | None = None,
) -> dict[str, Metric]:
    """The membership attacks; `references` are a reference model's scores of both sets."""
    sides = (forget, holdout)
    attacks = {
        "mia_loss": [[loss_score(s) for s in side.answers] for side in sides],
        "mia_zlib": [
            [zlib_score(s, text) for s, text in zip(side.answers, side.texts, strict=True)]
            for side in sides
        ],
        "mia_min_k": [[min_k_score(s) for s in side.answers] for side in sides],
        "mia_min_k_plus_plus": [[min_k_plus_plus_score(s) for s in side.answers] for side in sides],
    }
    if all(len(side.gradient_norms) for side in sides):
        attacks["mia_gradnorm"] = [list(side.gradient_norms) for side in sides]
    if references is not None:
        attacks["mia_reference"] = [
            [reference_score(s, r) for s, r in zip(side.answers, reference, strict=True)]
            for side, reference in zip(sides, references, strict=True)
        ]
    found: dict[str, Metric] = {}
    for name, (ours, theirs) in attacks.items():
        found |= _membership(name, ours, theirs)
    return found


def tofu_log(
    sets: Mapping[str, SetScores],
    holdout: SetScores | None = None,
    references: tuple[Sequence[TokenScores], Sequence[TokenScores]] | None = None,
    retain_log: RetainLog | None = None,
) -> dict[str, Metric]:
    """Every metric that the data allows, sorted by OpenUnlearning's names.

    It does not contain the given answers to forget questions; `with_truths` adds them.

    Args:
        sets: the scores by the names in `SETS`.
        references: a reference model's scores of forget and holdout answers.
    """
    log: dict[str, Metric] = {}
    for name, scores in sets.items():
        log |= _set_metrics(name, scores)
    if "forget" in sets:
        inner = [scores.without_end().greedy for scores in sets["forget"].answers]
        log["exact_memorization"] = _aggregated(
            [{"score": exact_memorisation(greedy)} for greedy in inner], "score"
        )
        log["extraction_strength"] = _aggregated(
            [{"score": extraction_strength(greedy)} for greedy in inner], "score"
        )
    if "forget" in sets and holdout is not None:
        log |= membership_metrics(sets["forget"], holdout, references)
        reference = None if retain_log is None else retain_log.min_k_auc
        reference = DEFAULT_REFERENCE_AUC if reference is None else reference
        log["privleak"] = {"agg_value": privacy_leakage(log["mia_min_k"]["agg_value"], reference)}
    if all(name in log for name in UTILITY_METRICS):
        values = [log[name]["agg_value"] for name in UTILITY_METRICS]
        log["model_utility"] = {"agg_value": model_utility(values)}
    if "forget_truth_ratio" in log:
        ratios = [row["score"] for row in log["forget_truth_ratio"]["value_by_index"].values()]
        theirs = () if retain_log is None else retain_log.truth_ratios
        log["forget_quality"] = {"agg_value": forget_quality(ratios, theirs) if theirs else None}
    return dict(sorted(log.items()))


def holds_truths(log: Mapping[str, Metric]) -> bool:
    """Whether a log contains given answers to forget questions: right, paraphrased or wrong."""
    rows = [row for name in FORGET_TEXTS if name in log for row in _rows(log[name])]
    texts = (row["ground_truth"] for row in rows)
    return any(text not in (None, [None] * len(text or ())) for text in texts)


def _rows(metric: Metric) -> list[dict[str, Any]]:
    return list(metric["value_by_index"].values())


def with_truths(
    log: Mapping[str, Metric], truths: Sequence[EvaluationRow] | None
) -> dict[str, Metric]:
    """The log with the given answers of these forget rows, in its order; None removes them."""
    found = dict(log)
    for name, field in FORGET_TEXTS.items():
        if name not in log:
            continue
        rows = _rows(log[name])
        texts: list[Any] = [
            [None] * len(row["ground_truth"]) if isinstance(row["ground_truth"], list) else None
            for row in rows
        ]
        if truths is not None:
            given = [getattr(row, field) for row in truths]
            texts = [list(text) if isinstance(text, tuple) else text for text in given]
        pairs = zip(rows, texts, strict=True)
        filled = by_index([{**row, "ground_truth": text} for row, text in pairs])
        found[name] = {**log[name], "value_by_index": filled}
    return found


def tofu_summary(log: Mapping[str, Metric]) -> dict[str, float]:
    """The value of every metric that has one."""
    return {
        name: metric["agg_value"]
        for name, metric in sorted(log.items())
        if metric.get("agg_value") is not None
    }
