"""How many sequences a run samples and trains at a time, from shapes and free memory."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from pmc_jax.data.packing import first_fit, row_width
from pmc_jax.model.buckets import bucket_length, bucket_rows
from pmc_jax.model.memory import SHARE, Footprint, first_fitting, halvings, rows_at_once
from pmc_jax.model.trainable import Trainable
from pmc_jax.settings import AUTO
from pmc_jax.unlearning.method import Examples, Method, Task
from pmc_jax.unlearning.schedule import Training


@dataclasses.dataclass(frozen=True)
class Lengths:
    """The tokens of what a run samples and trains on.

    Attributes:
        prompt, response: of the longest forget prompt, and of the longest sampled response.
        forget: of the sequences that each question adds to a step, the longest questions first.
        retain: of the retain pairs, the longest first.
    """

    prompt: int
    response: int
    forget: Sequence[int]
    retain: Sequence[int]


def lengths_of(task: Task, method: Method, examples: Examples) -> Lengths:
    """The lengths of a run; those of sampled responses are their limits."""
    most, drawn = task.training.max_length, method.drawn
    prompts = [len(prompt) for prompt in task.prompts]
    room = max((most - length - 1 for length in prompts), default=1)
    response = room if drawn is None else min(room, drawn.max_new_tokens or room)
    forget = [len(e.prompt) + len(e.answer) for e in examples.forget]
    forget += [max(len(e.prompt) + len(e.answer) for e in own) for own in examples.preferred]
    if drawn is not None and not forget:
        own = [most if drawn.forced else length + response + 1 for length in prompts]
        forget = [length for length in own for _ in range(method.answers_per_question)]
    elif not forget and examples.visited:
        forget = [most] * examples.visited  # not known before `prepare`

    def longest(found: Sequence[int]) -> list[int]:
        return sorted((min(length, most) for length in found), reverse=True)

    retain = [len(e.prompt) + len(e.answer) for e in examples.retain]
    prompt = most if drawn is not None and drawn.forced else max(prompts, default=1)
    return Lengths(prompt, max(response, 1), longest(forget), longest(retain))


def micro_batch_shape(
    lengths: Lengths, size: int, kinds: int, retain_pairs: int, max_length: int
) -> tuple[int, int]:
    """Rows and tokens of a micro-batch of the longest sequences, as `pack_batch` lays it out.

    Args:
        size: forget questions in it.
        kinds: sequences of a question besides its retain pairs.
    """
    pairs = size * retain_pairs
    own = [*lengths.forget[: size * kinds], *lengths.retain[:pairs]]
    own += [lengths.retain[0]] * (pairs - len(lengths.retain)) if lengths.retain else []
    width = row_width(own, max_length)
    return bucket_rows(len(first_fit(dict(enumerate(own)), width))), width


def step_bytes(
    training: Training,
    method: Method,
    lengths: Lengths,
    model: Footprint,
    questions: int,
    *,
    kinds: int,
    remat: str,
    update_norm: bool,
    weights_dtype: str,
) -> int:
    """What an optimizer step takes beside weights and moments.

    Args:
        questions: trained at a time.

    The others are those of `sizes`.
    """
    rows, width = micro_batch_shape(
        lengths, questions, kinds, method.retain_pairs, training.max_length
    )
    return model.train_step(
        -(-rows // model.data) * model.data, width, remat=remat,
        gradient_bytes=jnp.dtype(training.gradient_dtype or weights_dtype).itemsize,
        update_norm=update_norm, parts=-(-training.questions_per_step // questions),
    )  # fmt: skip


def less_memory(
    training: Training, remat: str, part: Trainable | None, *, update_norm: bool = False
) -> dict[str, Any]:
    """Settings with which an optimizer step takes less memory, those that change least first.

    Args:
        update_norm: whether the norm of the update takes memory.
    """
    found: dict[str, Any] = {}
    if training.part_size > 1:
        found["training.micro_batch"] = -(-training.part_size // 2)
    if remat != "full":
        found["model.remat"] = "full"
    if update_norm:
        found["logging.update_norm"] = "false"
    if training.gradient_dtype != "bfloat16" and part is None:
        found["training.gradient_dtype"] = "bfloat16"
    return found


def enough(
    changes: Mapping[str, Any], size: Callable[[Mapping[str, Any]], int], free: int
) -> dict[str, Any]:
    """The first of `changes` that are enough together, without those that are not needed.

    Args:
        size: the bytes that a step takes with some of them.

    Returns:
        All of them if they are not enough.
    """
    found: dict[str, Any] = {}
    for key, value in changes.items():
        found[key] = value
        if size(found) <= free:
            break
    for key in [*found][:-1]:
        rest = {name: value for name, value in found.items() if name != key}
        if size(rest) <= free:
            found = rest
    return found


def shortage(
    size: Callable[[Mapping[str, Any]], int],
    free: int | None,
    changes: Mapping[str, Any],
    otherwise: str = "",
) -> list[str]:
    """The warning for a run that may take more memory than there is; [] if it fits.

    A step fits if it takes at most `SHARE` of the free memory. The settings that are named keep it
    within that.

    Args:
        size: bytes of an optimizer step beside weights and moments, with some changed settings.
        free: bytes on each device beside weights and moments; None: unknown.
        changes: settings that take less.
        otherwise: what takes still less.
    """
    if free is None or (step := size({})) <= SHARE * free:
        return []
    needs = (
        f"an optimizer step needs up to {step / 1e9:.1f} GB beside weights and moments, "
        f"and {free / 1e9:.1f} GB are free"
    )
    some = enough(changes, size, int(SHARE * free))
    if not some:
        return [f"{needs}, so the run may be killed"]
    typed = " ".join(f"{key}={value}" for key, value in some.items())
    least = size(some)
    more = f", {otherwise} less" if otherwise else ""
    return [f"{needs}, so the run may be killed; {typed} needs up to {least / 1e9:.1f} GB{more}"]


def sizes(
    training: Training,
    method: Method,
    lengths: Lengths,
    model: Footprint,
    free: int | None,
    *,
    kinds: int,
    remat: str,
    update_norm: bool,
    weights_dtype: str,
) -> dict[str, Any]:
    """The settings of `training` that are "auto", as numbers.

    Args:
        free: bytes on each device beside weights and moments; None: unknown.
        kinds: sequences of a question in a step besides its retain pairs.
    """
    found: dict[str, Any] = {}
    drawn = method.drawn
    if training.decode_batch == AUTO and drawn is not None:
        filters = drawn.sampling.top_k > 0 or drawn.sampling.top_p < 1
        drafts = drawn.drafts if training.drafts else 0
        read = min(lengths.prompt + (lengths.response if drafts else 0), training.max_length)
        prompts, wave = rows_at_once(
            model, None if free is None else free - model.decoding_weights,
            prompts=training.questions_per_step, samples=drawn.samples,
            width=bucket_length(read), time=bucket_length(lengths.response),
            filters=filters, wave=training.wave, drafts=drafts,
        )  # fmt: skip
        found["decode_batch"] = prompts * drawn.samples
        found["wave"] = wave if wave < drawn.samples else training.wave
    if training.micro_batch == AUTO:

        def size(questions: int) -> int:
            return step_bytes(
                training, method, lengths, model, questions, kinds=kinds, remat=remat,
                update_norm=update_norm, weights_dtype=weights_dtype,
            )  # fmt: skip

        choices = halvings(training.part_size)
        found["micro_batch"] = first_fitting(choices, size, free)
    return found
