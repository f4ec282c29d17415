"""The few shapes that a run's functions are compiled for, known before its first step."""

import dataclasses
from collections.abc import Iterable

from pmc_jax.data.packing import PER_ROW, width_for
from pmc_jax.decoding import suffix_lengths
from pmc_jax.decoding.layout import prompt_rows, shapes
from pmc_jax.model import batch_shards
from pmc_jax.model.buckets import bucket_length, bucket_rows, halved
from pmc_jax.unlearning.method import Run
from pmc_jax.unlearning.pmc.sampling import sample_limit
from pmc_jax.unlearning.pmc.savings import DRAFTS, longest_read, questions_at_once
from pmc_jax.unlearning.pmc.settings import PMCSettings


@dataclasses.dataclass(frozen=True)
class RunShapes:
    """The shapes that the functions of a PMC run may be compiled for, each at most once.

    Attributes:
        prompts: (rows, tokens) of prefill, drafts included.
        rows: (groups, slots) of decoding.
        caches: lengths of the suffix cache, in tokens.
        training: (rows, tokens) of a micro-batch.
    """

    prompts: list[tuple[int, int]]
    rows: list[tuple[int, int]]
    caches: list[int]
    training: list[tuple[int, int]]

    def lines(self) -> list[str]:
        """The lines that are printed at the start."""

        def products(pairs: Iterable[tuple[int, int]]) -> str:
            return ", ".join(f"{a}x{b}" for a, b in pairs)

        ranges = []
        for width in sorted({width for _, width in self.training}):
            rows = [rows for rows, own in self.training if own == width]
            ranges.append(f"{min(rows)} to {max(rows)} x {width}")
        return [
            "compiled once each, when first needed:",
            f"  prefill, prompts x tokens: {products(self.prompts)}",
            f"  decoding, prompts x samples: {products(self.rows)}; "
            f"room for tokens: {', '.join(map(str, self.caches))}",
            f"  training, rows x tokens: {', '.join(ranges)} (few of these)",
        ]


def training_shapes(run: Run[PMCSettings], multiple: int) -> list[tuple[int, int]]:
    """(rows, tokens) of a micro-batch, whatever responses are remembered.

    From the rows of the shortest possible sequences up to one row for each sequence.
    """
    training, method = run.task.training, run.method
    per_question = method.answers_per_question + method.retain_pairs
    prompts = [len(prompt) for prompt in run.task.prompts]
    retain = [len(pair.prompt) + len(pair.answer) for pair in run.examples.retain]
    shortest = min(min(prompts) + 1, *retain)
    longest = (
        training.max_length
        if method.beginnings
        else max(
            *(
                min(training.max_length, length + sample_limit(run, i) + 1)
                for i, length in enumerate(prompts)
            ),
            *(min(training.max_length, length) for length in retain),
        )
    )
    rooms = range(PER_ROW * shortest, PER_ROW * longest + 1)
    widths = {width_for(room, training.max_length) for room in rooms}
    visited = len(prompts) % training.questions_per_step or training.questions_per_step
    fewest = min(visited, training.part_size) * per_question
    most = min(len(prompts), training.part_size) * per_question
    found = set()
    for width in widths:
        least = -(-fewest * shortest // width)
        for rows in range(least, most + 1):
            found.add((-(-bucket_rows(rows) // multiple) * multiple, width))
    return sorted(found)


def run_shapes(run: Run[PMCSettings], multiple: int | None = None) -> RunShapes:
    """The shapes of a run whose batches are sharded over `multiple` devices; None: this mesh's."""
    multiple = batch_shards() if multiple is None else multiple
    training, model = run.task.training, run.task.model
    samples, compact = run.method.samples, training.compact
    most = questions_at_once(run)
    questions = range(len(run.task.prompts))
    limits = {bucket_length(sample_limit(run, i)) for i in questions}
    longest, prompts = longest_read(run), {len(prompt) for prompt in run.task.prompts}
    reads = range(min(prompts), longest + 1) if training.drafts else prompts
    lengths = {halved(bucket_length(longest), length) for length in reads}
    if run.method.beginnings:
        longest = run.task.training.max_length
        forced = range(min(prompts), longest)
        lengths |= {halved(bucket_length(longest), length) for length in forced}
        limits = {bucket_length(length) for length in range(1, max(limits) + 1)}
    caches = {
        length
        for limit in limits
        for length in suffix_lengths(limit, model.config, model.dtype, training.decoding)
    }
    each = range(1, DRAFTS + 1) if training.drafts else [1]
    counts = {prompt_rows(count, most, compact=compact) for count in range(1, most + 1)}
    rows = {count * drafts for count in counts for drafts in each}
    return RunShapes(
        prompts=sorted((count, length) for count in rows for length in lengths),
        rows=shapes(most, samples, wave=training.wave, compact=compact),
        caches=sorted(caches),
        training=training_shapes(run, multiple),
    )
