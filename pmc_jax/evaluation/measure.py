"""Measuring one part of an evaluation."""

import dataclasses
import time
from typing import Any

from pmc_jax.errors import NotFinite, UserError
from pmc_jax.evaluation.context import EvaluationContext
from pmc_jax.evaluation.parts import PARTS, lacking, work
from pmc_jax.runtime.compilation import compile_seconds
from pmc_jax.runtime.progress import token_stage


def measure_part(context: EvaluationContext, part: str, model: str) -> dict[str, Any]:
    """Measure one part of a model; the progress bar shows the model's name.

    Raises:
        UserError: if the model's logits are not finite; it names model, part and question.

    Returns:
        The part's JSON object with its `seconds`, which include the seconds of compilation
        (`compiling`), and the number of `tokens`; or the reason why the part is `lacking`.
    """
    if (reason := lacking(context, part)) is not None:
        return {"lacking": reason}
    started, tokens = time.perf_counter(), 0
    title = f"{model}: {part.replace('_', ' ')}"
    with token_stage(title, work(context, part)) as on_batch, compile_seconds() as compiling:

        def counted(done: int, count: int) -> None:
            nonlocal tokens
            tokens += count
            on_batch(done, count)

        try:
            result = PARTS[part].measure(dataclasses.replace(context, on_batch=counted))
        except NotFinite as error:
            raise UserError(f"{title}: {error}") from error
    spent = {"seconds": time.perf_counter() - started, "compiling": compiling()}
    return {**result, **spent, "tokens": tokens}
