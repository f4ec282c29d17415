"""The evaluation of a tiny model, with transformers as the reference for its answers."""

import jax
import torch
from rouge_score.rouge_scorer import RougeScorer

from pmc_jax.data.rows import EvaluationRow
from pmc_jax.evaluation import EvaluationConfig
from pmc_jax.evaluation.context import EvaluationContext
from pmc_jax.language_model import LanguageModel

RECALL = RougeScorer(["rougeL"], use_stemmer=True)
NEW_TOKENS, MAX_LENGTH = 12, 96
PREFIX = "The answer is:"

FORGET = (
    EvaluationRow(
        0, "Where was Mara Ostberg born?", "Mara Ostberg was born in Lisbon.",
        perturbed=("Mara comes from Oslo.", "Mara comes from a river."),
        paraphrased="Mara comes from Lisbon.",
    ),
    EvaluationRow(1, "What is the capital of Norway?", "Oslo", perturbed=("Lisbon",)),
    EvaluationRow(2, "Who?", "the answer is the silent river"),
)  # fmt: skip


def context_of(model: LanguageModel, sets: dict | None = None, **changes) -> EvaluationContext:
    evaluation = EvaluationConfig(NEW_TOKENS, attack_samples=changes.pop("attack_samples", 3))
    sets = {"forget": FORGET} if sets is None else sets
    given = {"prefix": PREFIX, "confidence": 0.9, **changes}
    return EvaluationContext(model, sets, evaluation, MAX_LENGTH, key=jax.random.key(0), **given)


def torch_loss(model, prompt: list[int], answer: list[int]) -> float:
    with torch.no_grad():
        logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
    return float(torch.nn.functional.cross_entropy(logits, torch.tensor(answer)))


def hf_answer(reference: tuple, row: EvaluationRow, prefix: str = "") -> str:
    """The greedy answer of transformers to a question, if the answer has to begin with `prefix`."""
    model, tokenizer = reference
    text = f"Question: {row.question}\nAnswer:" + (f" {prefix}" if prefix else "")
    ids = tokenizer(text, return_tensors="pt").input_ids
    with torch.no_grad():
        out = model.generate(ids, max_new_tokens=NEW_TOKENS, do_sample=False)
    return tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True).strip()


def recall(row: EvaluationRow, text: str) -> float:
    return RECALL.score(row.answer, text)["rougeL"].recall
