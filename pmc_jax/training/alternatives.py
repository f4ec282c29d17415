"""Alternative answers, which AltPO prefers to those to be forgotten: from a file, or sampled."""

from collections.abc import Sequence
from pathlib import Path

import jax.numpy as jnp
from jaxtyping import DTypeLike, PRNGKeyArray

from pmc_jax.data.prompts import PromptTemplate
from pmc_jax.data.records import Record, read_records
from pmc_jax.data.rows import ForgetPair
from pmc_jax.decoding import Sampling, generate
from pmc_jax.errors import UserError
from pmc_jax.model import ModelConfig, decoding_params
from pmc_jax.model.specs import Params
from pmc_jax.training.batch import BatchConfig
from pmc_jax.training.responses import response_limit
from pmc_jax.unlearning.config import AltPOConfig
from pmc_jax.unlearning.rewards import response_score

PREFIX = "Alternative answer:"
"""What a response to an instruction begins with, so that nothing else comes first."""


def read_alternatives(path: str, rows: Sequence[ForgetPair]) -> list[list[str]]:
    """The alternatives of every forget question in a JSON-lines file.

    Row i belongs to forget row i, or, with n times as many rows, the n rows from n·i on. A row
    has `alternatives`, a list of texts, or one as `alternate`, as OpenUnlearning's script
    writes it; its `question` may be left out.

    Raises:
        UserError: naming the row that has none, or belongs to another question.
    """
    file = Path(path).expanduser()
    records = read_records(file)
    each, left = divmod(len(records), len(rows))
    if left or not each:
        raise UserError(
            f"method.alternatives={file}: has {len(records)} rows; expected one, or the same "
            f"number, for each of the {len(rows)} forget questions"
        )
    found: list[list[str]] = [[] for _ in rows]
    for place, record in enumerate(records):
        row = rows[place // each]
        if record.optional_text("question") not in (None, row.question):
            raise record.error("question", f"is not that of forget row {row.id}")
        found[place // each] += _alternatives(record)
    return found


def _alternatives(record: Record) -> tuple[str, ...]:
    if texts := record.texts("alternatives"):
        return texts
    if "alternate" in record.fields:
        return (record.text("alternate"),)
    raise record.error("alternatives", "is missing or empty; expected a list of texts")


def alternative_prompt(row: ForgetPair, method: AltPOConfig, template: PromptTemplate) -> list[int]:
    """What the model is asked for alternatives: the instruction, or just the question.

    A model without a chat template follows no instructions: the question is all it gets.
    """
    if method.prompt == "question" or (method.prompt == "auto" and not template.chat):
        return template.encode_prompt(row.question, row.system)
    text = f"Question: {row.question}\nAnswer: {row.answer}\n{method.instruction}"
    return template.encode_prompt(text, row.system) + template.encode_prefix(PREFIX)


def choose_alternatives(answer: str, responses: Sequence[str], kept: int) -> list[str]:
    """The `kept` responses that hold least of the answer; no response twice, no blank one.

    The measure is that of PMC; of equals the first comes first. One that holds the whole answer
    is no alternative, unless there is nothing else.
    """
    distinct = dict.fromkeys(response for response in responses if response.strip())
    scores = {
        response: response_score(answer, response, reject_wordless=True) for response in distinct
    }
    others = [response for response in scores if scores[response] < 1]
    return sorted(others or distinct, key=lambda response: scores[response])[:kept]


def sample_alternatives(
    params: Params,
    rows: Sequence[ForgetPair],
    prompts: Sequence[Sequence[int]],
    *,
    method: AltPOConfig,
    model: ModelConfig,
    template: PromptTemplate,
    batch: BatchConfig,
    key: PRNGKeyArray,
    dtype: DTypeLike = jnp.float32,
) -> list[list[str]]:
    """Alternatives to the answer of every forget row, from the target model itself.

    `prompts` are those that the alternatives will be trained on, with which they share
    `max_length`.

    Raises:
        UserError: if all responses to a question are blank.
    """
    responses = generate(
        decoding_params(params, model, dtype),
        [alternative_prompt(row, method, template) for row in rows],
        cfg=model,
        sampling=Sampling(temperature=method.temperature, stop_ids=template.stop_ids),
        key=key,
        limits=[
            response_limit(prompt, batch.max_length, method.max_new_tokens) for prompt in prompts
        ],
        samples=method.samples,
        rows=batch.rows,
        dtype=dtype,
    )
    found = []
    for row, own in zip(rows, responses, strict=True):
        texts = [template.decode(tokens) for tokens in own]
        found.append(choose_alternatives(row.answer, texts, method.kept))
        if not found[-1]:
            raise UserError(
                f"forget row {row.id}: all {method.samples} sampled alternatives are empty; "
                "raise method.samples or method.temperature, or give method.alternatives"
            )
    return found
