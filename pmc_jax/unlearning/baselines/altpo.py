"""DPO of alternative answers over forget answers (AltPO; Mekala et al. 2024, arXiv 2409.13474)."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from jaxtyping import Array, Float

from pmc_jax.data.prompts import PromptTemplate
from pmc_jax.data.records import Record, read_records
from pmc_jax.data.rows import ForgetPair
from pmc_jax.decoding import Sampling, generate
from pmc_jax.errors import UserError
from pmc_jax.model import decoding_params
from pmc_jax.model.specs import Params
from pmc_jax.settings import bounded, free_text, one_of, path_to
from pmc_jax.unlearning.baselines.dpo import dpo_loss
from pmc_jax.unlearning.baselines.references import ReferencedMethod
from pmc_jax.unlearning.losses import Targets
from pmc_jax.unlearning.method import Examples, Method, Run, Task, TaskWithAnswers
from pmc_jax.unlearning.pmc.reward import response_score
from pmc_jax.unlearning.pmc.sampling import response_limit

PREFIX = "Alternative answer:"
"""What a response to an instruction begins with, so that nothing else comes first."""

STREAM = 2
"""The stream of random numbers that alternatives are sampled with."""


@dataclasses.dataclass(frozen=True)
class AltPO(ReferencedMethod):
    """DPO of alternative answers over the forget answers; alternatives take turns by epoch.

    Attributes:
        beta: the inverse temperature β.
        alternatives: a file of alternatives; null: sampled from the target model.
        samples: responses drawn for each question.
        kept: how many of them become alternatives: those least like the answer.
        temperature: sampling temperature of the alternatives.
        max_new_tokens: longest alternative; null: what `training.max_length` leaves.
        prompt: "instruct" asks with `instruction`, "question" asks the question itself; "auto"
            is "instruct" if prompts come from a chat template.
        instruction: asks for an alternative, after the question and its answer.
    """

    name: str = "altpo"
    beta: float = bounded(0.1, above=0)
    alternatives: str | None = path_to(None)
    samples: int = bounded(20, least=1, most=2**16)
    kept: int = bounded(5, least=1)
    temperature: float = bounded(1.0, least=0)
    max_new_tokens: int | None = bounded(None, least=1)
    prompt: str = one_of("auto", "auto", "instruct", "question")
    instruction: str = free_text(
        "Invent another answer to this question. It must sound plausible, fit everything that "
        "the question says, and replace every fact of the answer above by a different one. "
        "Give only the new answer."
    )

    reads: ClassVar[tuple[str, ...]] = ("alternatives",)
    sentence: ClassVar[str] = (
        "by alternate preference optimisation (AltPO, arXiv 2409.13474) to prefer other "
        "answers to those to be forgotten, and on answers to keep."
    )

    def examples_of(self, task: Task) -> Examples:
        """The true answers, retain pairs, and alternatives if they come from a file."""
        assert isinstance(task, TaskWithAnswers)
        examples = super().examples_of(task)
        if self.alternatives is None:
            return examples
        return with_alternatives(task, examples, read_alternatives(self.alternatives, task.forget))

    def prepare(self, task: Task, examples: Examples, params: Params) -> dict[str, Any]:
        """Alternatives sampled from the target model if no file has them, and N_ref of all."""
        assert isinstance(task, TaskWithAnswers)
        if self.alternatives is not None:
            return super().prepare(task, examples, params)
        alternatives = sample_alternatives(self, task, params)
        completed = with_alternatives(task, examples, alternatives)
        return {"alternatives": alternatives, **super().prepare(task, completed, params)}

    def with_prepared(
        self, task: Task, examples: Examples, prepared: Mapping[str, Any]
    ) -> Examples:
        """The examples with sampled alternatives and N_ref."""
        assert isinstance(task, TaskWithAnswers)
        if "alternatives" in prepared:
            examples = with_alternatives(task, examples, prepared["alternatives"])
        return super().with_prepared(task, examples, prepared)

    def files(self, run: Run[Method], questions: Sequence[str]) -> dict[str, list[Any]]:
        """The sampled alternatives, in the form in which `alternatives` reads them."""
        if "alternatives" not in run.prepared:
            return {}
        rows = zip(questions, run.prepared["alternatives"], strict=True)
        found = [{"question": question, "alternatives": own} for question, own in rows]
        return {"alternatives.jsonl": found}

    def loss(self, forget: Targets, preferred: Targets) -> Float[Array, ""]:
        """The DPO loss."""
        return dpo_loss(forget, preferred, self.beta)


def with_alternatives(
    task: TaskWithAnswers, examples: Examples, texts: Sequence[Sequence[str]]
) -> Examples:
    """The same examples with alternative answers preferred to each answer."""
    preferred = [
        task.answered([row] * len(own), own) for row, own in zip(task.forget, texts, strict=True)
    ]
    return dataclasses.replace(examples, preferred=preferred)


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
    for index, record in enumerate(records):
        row = rows[index // each]
        if record.optional_text("question") not in (None, row.question):
            raise record.error("question", f"is not that of forget row {row.id}")
        found[index // each] += alternatives_in(record)
    return found


def alternatives_in(record: Record) -> tuple[str, ...]:
    """The alternatives of one row of the file.

    Raises:
        UserError: if it has none.
    """
    if texts := record.texts("alternatives"):
        return texts
    if "alternate" in record.fields:
        return (record.text("alternate"),)
    raise record.error("alternatives", "is missing or empty; expected a list of texts")


def alternative_prompt(row: ForgetPair, method: AltPO, template: PromptTemplate) -> list[int]:
    """What the model is asked for alternatives: the instruction, or just the question.

    A model without a chat template follows no instructions, so it gets the question alone.
    """
    if method.prompt == "question" or (method.prompt == "auto" and not template.chat):
        return template.encode_prompt(row.question, row.system)
    text = f"Question: {row.question}\nAnswer: {row.answer}\n{method.instruction}"
    return template.encode_prompt(text, row.system) + template.encode_prefix(PREFIX)


def choose_alternatives(answer: str, responses: Sequence[str], kept: int) -> list[str]:
    """The `kept` responses with the least of the answer, without repetitions and blank ones.

    The measure is that of PMC; ties keep the order of the responses. A response with the whole
    answer is only taken if there is no other.
    """
    distinct = dict.fromkeys(response for response in responses if response.strip())
    scores = {
        response: response_score(answer, response, reject_wordless=True) for response in distinct
    }
    others = [response for response in scores if scores[response] < 1]
    return sorted(others or distinct, key=lambda response: scores[response])[:kept]


def sample_alternatives(method: AltPO, task: TaskWithAnswers, params: Params) -> list[list[str]]:
    """Alternatives to the answer of every forget row, from the target model itself.

    They share `max_length` with the forget prompts, on which they will be trained.

    Raises:
        UserError: if all responses to a question are blank.
    """
    model, training = task.model, task.training
    responses = generate(
        decoding_params(params, model.config, model.dtype),
        [alternative_prompt(row, method, model.template) for row in task.forget],
        cfg=model.config,
        sampling=Sampling(temperature=method.temperature, stop_ids=model.template.stop_ids),
        key=task.key(STREAM),
        limits=[
            response_limit(prompt, training.max_length, method.max_new_tokens)
            for prompt in task.prompts
        ],
        samples=method.samples,
        decode_batch=training.decode_batch,
        dtype=model.dtype,
    )
    found = []
    for row, own in zip(task.forget, responses, strict=True):
        texts = [model.template.decode(tokens) for tokens in own]
        found.append(choose_alternatives(row.answer, texts, method.kept))
        if not found[-1]:
            raise UserError(
                f"forget row {row.id}: all {method.samples} sampled alternatives are empty; "
                "raise method.samples or method.temperature, or give method.alternatives"
            )
    return found
