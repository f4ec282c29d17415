"""What a method finds before its first step, and its steps."""

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

import jax
import numpy as np
import optax

from pmc_jax.cli.config import Config
from pmc_jax.model import batch_shards
from pmc_jax.model.language_model import weights_dtype
from pmc_jax.model.specs import Params
from pmc_jax.runs.checkpoints import RunState
from pmc_jax.runtime.timing import timed
from pmc_jax.training.alternatives import sample_alternatives
from pmc_jax.training.baseline import BaselineRun, baseline_steps, needs_reference, reference_nll
from pmc_jax.training.loop import pmc_steps
from pmc_jax.training.objectives import Frozen, method_objective
from pmc_jax.training.packing import Pair
from pmc_jax.training.pmc_run import PMCRun, UnlearningTask
from pmc_jax.training.responses import greedy_originals
from pmc_jax.training.run import Record
from pmc_jax.training.shapes import run_shapes
from pmc_jax.training.step import make_objective_step, make_train_step
from pmc_jax.training.targets import MethodData, load_forget_pairs, with_alternatives
from pmc_jax.training_inputs import Inputs
from pmc_jax.unlearning.config import AltPOConfig, PMCConfig

Steps = Callable[
    [RunState, dict[str, Any], Callable[[str], None]], Iterator[tuple[RunState, Record]]
]
"""From the state to start at, the JSON kept beside it, and where to say what a person may want
to know first, to the steps that are left."""


def originals_of(cfg: Config, method: PMCConfig, inputs: Inputs, params: Params) -> dict[str, Any]:
    """y0 of every forget question, as it is kept beside the checkpoints."""
    originals = greedy_originals(
        params,
        inputs.encoded.forget,
        model=inputs.model.config,
        template=inputs.model.template,
        batch=cfg.training,
        max_new_tokens=method.max_new_tokens,
        dtype=cfg.model.dtype,
    )
    return {"originals": originals}


def references_of(cfg: Config, inputs: Inputs, data: MethodData, params: Params) -> dict[str, Any]:
    """N_ref of every answer and of what is preferred to it, as kept beside the checkpoints."""

    def reference(pairs: Sequence[Pair]) -> list[float]:
        if not needs_reference(cfg.method):
            return [0.0] * len(pairs)
        return reference_nll(
            params,
            pairs,
            model=inputs.model.config,
            template=inputs.model.template,
            batch=cfg.training,
            dtype=cfg.model.dtype,
            remat=cfg.model.remat,
        ).tolist()

    preferred = iter(reference([pair for own in data.preferred for pair in own]))
    return {
        "references": {
            "answers": reference(data.answers),
            "preferred": [list(islice(preferred, len(own))) for own in data.preferred],
        }
    }


def alternatives_of(
    cfg: Config, method: AltPOConfig, inputs: Inputs, params: Params
) -> dict[str, Any]:
    """The alternatives that AltPO samples before it begins, as they are kept."""
    alternatives = sample_alternatives(
        params,
        load_forget_pairs(cfg.data),
        inputs.encoded.forget,
        method=method,
        model=inputs.model.config,
        template=inputs.model.template,
        batch=cfg.training,
        key=jax.random.fold_in(jax.random.key(cfg.seed), 2),
        dtype=cfg.model.dtype,
    )
    return {"alternatives": alternatives}


def targets_with(inputs: Inputs, extra: dict[str, Any]) -> MethodData:
    """What a method other than PMC trains on, alternatives kept in `extra` included."""
    assert inputs.targets is not None
    if "alternatives" not in extra:
        return inputs.targets
    template, vocab_size = inputs.model.template, inputs.model.config.vocab_size
    return with_alternatives(inputs.targets, extra["alternatives"], template, vocab_size)


def alternative_rows(inputs: Inputs, extra: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The sampled alternatives as `method.alternatives` reads them."""
    for row, own in zip(inputs.dataset.forget, extra["alternatives"], strict=True):
        yield {"question": row.question, "alternatives": own}


def fixed_before(cfg: Config, inputs: Inputs, params: Params) -> dict[str, Any]:
    """What the target model alone decides, with the seconds that finding it took."""
    seconds, found = {"checkpoint": 0.0}, {}
    if isinstance(cfg.method, PMCConfig):
        with timed(seconds, "originals"):
            found = originals_of(cfg, cfg.method, inputs, params)
    else:
        if isinstance(cfg.method, AltPOConfig) and cfg.method.alternatives is None:
            with timed(seconds, "alternatives"):
                found = alternatives_of(cfg, cfg.method, inputs, params)
        with timed(seconds, "references"):
            found |= references_of(cfg, inputs, targets_with(inputs, found), params)
    return {**found, "seconds": seconds}


def steps_of_pmc(
    cfg: Config, method: PMCConfig, inputs: Inputs, optimizer: optax.GradientTransformation
) -> Steps:
    """The steps of PMC."""
    model, encoded = inputs.model, inputs.encoded
    train_step = make_train_step(
        optimizer,
        model.config,
        method.retain_weight,
        dtype=cfg.model.dtype,
        remat=cfg.model.remat,
        gradient_dtype=cfg.training.gradient_dtype,
        update_norm=cfg.logging.update_norm,
    )

    def steps(
        state: RunState, extra: dict[str, Any], say: Callable[[str], None]
    ) -> Iterator[tuple[RunState, Record]]:
        run = PMCRun(
            task=UnlearningTask(encoded.forget, extra["originals"], encoded.retain),
            model=model.config,
            template=model.template,
            pmc=method,
            batch=cfg.training,
            key=jax.random.fold_in(jax.random.key(cfg.seed), 0),
            seed=cfg.seed,
            train_step=train_step,
            dtype=cfg.model.dtype,
        )
        for line in run_shapes(run, batch_shards()).lines():
            say(line)
        return pmc_steps(run, state)

    return steps


def steps_of_baseline(
    cfg: Config, inputs: Inputs, optimizer: optax.GradientTransformation, frozen: Frozen
) -> Steps:
    """The steps of any other method."""
    objective = method_objective(cfg.method, inputs.model.config, cfg.model.dtype, cfg.model.remat)

    def steps(
        state: RunState, extra: dict[str, Any], say: Callable[[str], None]
    ) -> Iterator[tuple[RunState, Record]]:
        wide, references = weights_dtype(cfg.model.dtype), extra["references"]
        run = BaselineRun(
            method=cfg.method,
            data=targets_with(inputs, extra),
            template=inputs.model.template,
            batch=cfg.training,
            seed=cfg.seed,
            train_step=make_objective_step(
                optimizer,
                objective,
                inputs.model.config,
                cfg.training.gradient_dtype,
                cfg.logging.update_norm,
            ),
            answer_reference=np.asarray(references["answers"], wide),
            preferred_reference=[np.asarray(own, wide) for own in references["preferred"]],
            frozen=frozen,
        )
        return baseline_steps(run, state)

    return steps
