"""What is left of the unlearning after somebody has worked on the weights.

Fine-tuning on a few rows and rounding to few bits are what a model goes through when it is
used; both are known to bring back what seemed forgotten.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from pmc_jax.data.rows import EvaluationRow
from pmc_jax.errors import UserError
from pmc_jax.evaluation.examination import (
    SAMPLING_STREAM,
    AftermathConfig,
    Examination,
    asked,
    no_samples,
)
from pmc_jax.evaluation.leakage import greedy_leakage, leakage
from pmc_jax.evaluation.likelihood import Pair, answer_losses
from pmc_jax.evaluation.quality import FORGET_SETS, Answer, quality, questions_asked
from pmc_jax.evaluation.rounding import round_params
from pmc_jax.model import to_host

TEACHING_STREAM = 4
KINDS = ("forget", "benign")
WIDTHS = range(2, 17)
"""Numbers of bits that weights can be rounded to."""


def check_aftermath(cfg: AftermathConfig) -> None:
    """Refuse steps that do not rise and bits that no integer has.

    Raises:
        UserError: naming the setting.
    """
    if not cfg.steps or any(b <= a for a, b in zip([0, *cfg.steps], cfg.steps, strict=False)):
        raise UserError(f"aftermath.steps={cfg.steps}: expected rising numbers from 1 on")
    if any(bits not in WIDTHS for bits in cfg.bits):
        raise UserError(f"aftermath.bits={cfg.bits}: expected numbers of bits from 2 to 16")


def measured_again(x: Examination, taught: Sequence[EvaluationRow] = ()) -> dict[str, Any]:
    """The numbers of the parts `quality` and `sampling`, without those of single questions.

    What was `taught` counts for neither, and the sampling attack has no numbers if nothing is
    left to ask.
    """
    rows, samples = untaught(x, taught), x.evaluation.attack_samples
    sampled = None
    if rows:
        answers = asked(x, SAMPLING_STREAM, samples=samples, rows=rows)
        sampled = leakage(answers, x.confidence)
        del sampled["questions"]
    sets = untaught_sets(x, taught)
    measures = quality(x.respondent, sets, x.greedily, x.key, x.on_batch)["measures"]
    return {"measures": measures, "sampling": sampled}


def again_work(x: Examination, taught: Sequence[EvaluationRow] = ()) -> int:
    """How many questions `measured_again` asks."""
    return len(untaught(x, taught)) + questions_asked(untaught_sets(x, taught), x.greedily)


def untaught(x: Examination, taught: Sequence[EvaluationRow]) -> list[EvaluationRow]:
    """The forget rows that were not taught again."""
    ids = {row.id for row in taught}
    return [row for row in x.forget if row.id not in ids]


def untaught_sets(
    x: Examination, taught: Sequence[EvaluationRow]
) -> dict[str, Sequence[EvaluationRow]]:
    """All sets, those about what should be forgotten without what was taught again."""
    ids = {row.id for row in taught}
    return {
        name: [row for row in rows if row.id not in ids] if name in FORGET_SETS else rows
        for name, rows in x.sets.items()
    }


def encoded(x: Examination, rows: Sequence[EvaluationRow]) -> list[Pair]:
    """Rows as (prompt, answer with end token) token ids."""
    template = x.respondent.template
    return [
        (template.encode_prompt(row.question, row.system), template.encode_answer(str(row.answer)))
        for row in rows
    ]


def taught_rows(x: Examination, kind: str) -> list[EvaluationRow]:
    """The rows that the model is fine-tuned on, drawn by the examination's key."""
    rows = x.forget if kind == "forget" else x.benign
    most = max(1, len(rows) // 2) if kind == "forget" else len(rows)
    count = min(x.aftermath.rows, most)
    key = jax.random.fold_in(x.key, TEACHING_STREAM)
    chosen = to_host(jax.random.permutation(key, len(rows)))[:count]
    return [rows[i] for i in sorted(chosen.tolist())]


def greedy_point(x: Examination, steps: int, taught: Sequence[EvaluationRow]) -> dict[str, Any]:
    """Greedy leakage of the forget rows that were not taught, and of those that were.

    `probability` is the geometric mean probability of a token of the right answers, averaged
    over the rows that were not taught.
    """
    ids = {row.id for row in taught}
    found = [row[0] for row in asked(x, SAMPLING_STREAM)]

    def part(answers: list[Answer]) -> dict[str, Any] | None:
        if not answers:
            return None
        numbers = greedy_leakage(answers)
        return {"mean": numbers["mean"], "secret_rate": numbers["secret_rate"]}

    others = untaught(x, taught)
    losses = (
        answer_losses(x.respondent, encoded(x, others), on_batch=x.on_batch) if others else None
    )
    return {
        "steps": steps,
        "untaught": part([answer for answer in found if answer.id not in ids]),
        "taught": part([answer for answer in found if answer.id in ids]),
        "probability": None if losses is None else float(np.exp(-losses).mean()),
    }


def relearning_part(x: Examination) -> dict[str, Any]:
    """Fine-tuning on a few forget rows, and on as many benign ones, measured as it goes on.

    By kind: ids of the rows taught, the `curve` of greedy leakage over steps, and after the
    last step the measures of `measured_again`.
    """
    assert x.relearn is not None
    found: dict[str, Any] = {}
    for kind in KINDS:
        rows = taught_rows(x, kind)
        if not rows:
            continue
        taught = rows if kind == "forget" else []
        curve, after = [], None
        for steps, params in x.relearn(encoded(x, rows), [0, *x.aftermath.steps]):
            changed = x.of(params)
            curve.append(greedy_point(changed, steps, taught))
            if steps == x.aftermath.steps[-1]:
                after = measured_again(changed, taught)
        found[kind] = {"rows": [row.id for row in rows], "curve": curve, "after": after}
    return found


def relearning_work(x: Examination) -> int:
    """How many questions and answers `relearning_part` puts to the model."""
    points = 1 + len(x.aftermath.steps)
    total = 0
    for kind in KINDS:
        if rows := taught_rows(x, kind):
            taught = rows if kind == "forget" else []
            total += points * (2 * len(x.forget) - len(taught)) + again_work(x, taught)
    return total


def no_relearning(x: Examination) -> str | None:
    """Why there is no relearning; None if there is."""
    return no_samples(x) or ("nothing fine-tunes it" if x.relearn is None else None)


def rounding_part(x: Examination) -> dict[str, Any]:
    """The measures after rounding the weights, by the number of bits."""
    respondent = x.respondent
    return {
        str(bits): measured_again(x.of(round_params(respondent.params, respondent.model, bits)))
        for bits in x.aftermath.bits
    }


def rounding_work(x: Examination) -> int:
    """How many questions `rounding_part` asks."""
    return len(x.aftermath.bits) * again_work(x)
