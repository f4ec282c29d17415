"""Whether the unlearning holds when the weights are changed: relearning and quantisation.

In ordinary use, models are fine-tuned on a few examples and quantised to few bits. Both are known
to bring back what seemed forgotten.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from pmc_jax.data.rows import EvaluationRow
from pmc_jax.errors import UserError
from pmc_jax.evaluation.context import (
    SAMPLING_STREAM,
    EvaluationContext,
    RobustnessConfig,
    forget_answers,
    no_samples,
)
from pmc_jax.evaluation.leakage import greedy_leakage, leakage
from pmc_jax.evaluation.likelihood import Pair, answer_losses
from pmc_jax.evaluation.quality import FORGET_SETS, Answer, answers_asked_for, quality
from pmc_jax.evaluation.quantisation import quantise_params
from pmc_jax.evaluation.verdicts import revealed_questions
from pmc_jax.model import to_host

RELEARNING_STREAM = 4
KINDS = ("forget", "benign")
WIDTHS = range(2, 17)
"""Numbers of bits to which weights can be quantised."""


def check_robustness(config: RobustnessConfig) -> None:
    """Check that the numbers of steps increase and that the numbers of bits are possible.

    Raises:
        UserError: naming the setting.
    """
    steps, bits = config.steps, config.bits
    if not steps or any(b <= a for a, b in zip([0, *steps], steps, strict=False)):
        raise UserError(f"robustness.steps={steps}: expected increasing numbers from 1 on")
    if any(number not in WIDTHS for number in bits):
        raise UserError(f"robustness.bits={bits}: expected numbers of bits from 2 to 16")


def measured_again(
    context: EvaluationContext, trained: Sequence[EvaluationRow] = ()
) -> dict[str, Any]:
    """The measures of the parts `quality` and `sampling`, without measures of single questions.

    Forget questions that the model was `trained` on are left out of both. If no question
    remains, `sampling` is None. `revealed` is `revealed_questions` of the sampled answers.
    """
    rows, samples = untrained(context, trained), context.evaluation.attack_samples
    sampled = None
    if rows:
        answers = forget_answers(context, SAMPLING_STREAM, samples=samples, rows=rows)
        sampled = leakage(answers, context.confidence)
        sampled["revealed"] = revealed_questions(sampled.pop("questions"))
    found = quality(
        context.model, untrained_sets(context, trained), context.greedy, context.key,
        max_length=context.max_length, on_batch=context.on_batch, known=context.known,
    )  # fmt: skip
    return {"measures": found["measures"], "sampling": sampled}


def answers_again(context: EvaluationContext, trained: Sequence[EvaluationRow] = ()) -> int:
    """How many answers `measured_again` decodes."""
    sets = untrained_sets(context, trained)
    sampled = len(untrained(context, trained)) * context.evaluation.attack_samples
    return sampled + answers_asked_for(sets, context.greedy)


def untrained(context: EvaluationContext, trained: Sequence[EvaluationRow]) -> list[EvaluationRow]:
    """The forget questions that the model was not trained on again."""
    ids = {row.id for row in trained}
    return [row for row in context.forget if row.id not in ids]


def untrained_sets(
    context: EvaluationContext, trained: Sequence[EvaluationRow]
) -> dict[str, Sequence[EvaluationRow]]:
    """All sets; the forget sets without the questions that the model was trained on again."""
    ids = {row.id for row in trained}
    return {
        name: [row for row in rows if row.id not in ids] if name in FORGET_SETS else rows
        for name, rows in context.sets.items()
    }


def encoded(context: EvaluationContext, rows: Sequence[EvaluationRow]) -> list[Pair]:
    """(prompt, answer with end token) of each row as token ids."""
    template = context.model.template
    return [template.encode_pair(row.question, str(row.answer), row.system) for row in rows]


def relearning_rows(context: EvaluationContext, kind: str) -> list[EvaluationRow]:
    """The rows that the model is fine-tuned on, drawn with the evaluation's key."""
    rows = context.forget if kind == "forget" else context.benign
    most = max(1, len(rows) // 2) if kind == "forget" else len(rows)
    count = min(context.robustness.examples, most)
    key = jax.random.fold_in(context.key, RELEARNING_STREAM)
    chosen = to_host(jax.random.permutation(key, len(rows)))[:count]
    return [rows[i] for i in sorted(chosen.tolist())]


def curve_point(
    context: EvaluationContext, steps: int, trained: Sequence[EvaluationRow]
) -> dict[str, Any]:
    """Greedy leakage after `steps`, separately for questions trained on and for all others.

    `probability` is the geometric mean probability of a token of the right answers, averaged
    over the questions that the model was not trained on.
    """
    ids = {row.id for row in trained}
    found = [group[0] for group in forget_answers(context, SAMPLING_STREAM)]

    def numbers(answers: list[Answer]) -> dict[str, Any] | None:
        if not answers:
            return None
        leaked = greedy_leakage(answers)
        return {key: leaked[key] for key in ("mean", "facts", "secret_rate")}

    others, losses = untrained(context, trained), None
    if others:
        losses = answer_losses(context.model, encoded(context, others), on_batch=context.on_batch)
    return {
        "steps": steps,
        "untrained": numbers([answer for answer in found if answer.id not in ids]),
        "trained": numbers([answer for answer in found if answer.id in ids]),
        "probability": None if losses is None else float(np.exp(-losses).mean()),
    }


def relearning_part(context: EvaluationContext) -> dict[str, Any]:
    """Fine-tune on a few forget examples, and on as many benign ones, and measure.

    By kind: ids of the `rows` trained on, the `curve` of greedy leakage over steps, and
    `measured_again` after the last step.
    """
    assert context.relearn is not None
    found: dict[str, Any] = {}
    for kind in KINDS:
        rows = relearning_rows(context, kind)
        if not rows:
            continue
        trained = rows if kind == "forget" else []
        curve, after = [], None
        for steps, model in context.relearn(encoded(context, rows), [0, *context.robustness.steps]):
            changed = context.with_model(model)
            curve.append(curve_point(changed, steps, trained))
            if steps == context.robustness.steps[-1]:
                after = measured_again(changed, trained)
        found[kind] = {"rows": [row.id for row in rows], "curve": curve, "after": after}
    return found


def relearning_work(context: EvaluationContext) -> int:
    """How many questions and answers `relearning_part` gives to the model."""
    points = 1 + len(context.robustness.steps)
    total = 0
    for kind in KINDS:
        if rows := relearning_rows(context, kind):
            trained = rows if kind == "forget" else []
            total += points * (2 * len(context.forget) - len(trained))
            total += answers_again(context, trained)
    return total


def no_relearning(context: EvaluationContext) -> str | None:
    """Why relearning cannot be measured; None if it can."""
    return no_samples(context) or (
        "the model cannot be fine-tuned here" if context.relearn is None else None
    )


def quantisation_part(context: EvaluationContext) -> dict[str, Any]:
    """The measures with quantised weights, by the number of bits."""
    model = context.model

    def quantised(bits: int) -> EvaluationContext:
        params = quantise_params(model.params, model.config, bits)
        return context.with_model(model.with_params(params))

    return {str(bits): measured_again(quantised(bits)) for bits in context.robustness.bits}


def quantisation_work(context: EvaluationContext) -> int:
    """How many answers `quantisation_part` decodes."""
    return len(context.robustness.bits) * answers_again(context)
