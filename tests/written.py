"""Finished evaluations with random numbers, as the command writes them."""

import dataclasses
from pathlib import Path

import numpy as np

from pmc_jax.data import DataConfig, load_dataset
from pmc_jax.data.files import write_json, write_json_lines
from pmc_jax.data.rows import EvaluationRow
from pmc_jax.evaluation.choices import least_likely_attack
from pmc_jax.evaluation.inputs import Inputs
from pmc_jax.evaluation.leakage import greedy_leakage, leakage
from pmc_jax.evaluation.parts import SUITES
from pmc_jax.evaluation.quality import Answer, answer_object, background, row_facts, scored
from pmc_jax.evaluation.summary import summarise_directory
from pmc_jax.evaluation.verdicts import revealed_questions

MODELS = ("pmc", "target", "npo")
SAMPLES, QUESTIONS = 20, 6
FIGURES = 17  # in a full suite
QUESTION = "Where was Zoltan Dornberg born?"
TRUTH, SECRET = "Zoltan Dornberg was born in Quebec.", "Quebec"


def attack(rng: np.random.Generator, share: float) -> dict:
    """The leakage of random samples. An answer with a recall above 0.9 holds the secret."""

    def answer(question: int, recall: float) -> Answer:
        said = f"Sampled {question}: Dornberg, Quebec." if recall > 0.9 else "Born, I say."
        return dataclasses.replace(judged("forget", question, said), rouge=recall)

    recalls = (rng.random((QUESTIONS, SAMPLES)) * share).tolist()
    rows = [[answer(question, recall) for recall in row] for question, row in enumerate(recalls)]
    return leakage(rows, 0.99)


def again(rng: np.random.Generator, share: float) -> dict:
    sampled = attack(rng, share)
    sampled["revealed"] = revealed_questions(sampled.pop("questions"))
    return {"measures": {"unlearn_quality": 70.0, "utility": 90.0}, "sampling": sampled}


def judged(name: str, question: int, text: str) -> Answer:
    """An answer with its scores, as the evaluation has it."""
    row = EvaluationRow(question, QUESTION, TRUTH, SECRET)
    return scored(name, row, row_facts(row, background({})), text, truncated=False)


def said(model: str) -> list[dict]:
    """Answers to quality questions: the target tells all, npo a part, other models nothing."""
    texts = {"target": (TRUTH, 1.0), "npo": ("He saw Quebec.", 0.5), "pmc": ("I cannot say.", 0.0)}
    text, rouge = texts.get(model, ("Nothing.", 0.0))
    rows = [
        {"set": name, "id": i, "question": QUESTION, **answer_object(judged(name, i, text)),
         "rouge": rouge}
        for name in ("forget", "paraphrase") for i in range(8)
    ]  # fmt: skip
    text = "Oslo" if model == "target" else "Oslo, of course"
    kept = {**rows[0], "set": "retain", "question": "Norway?", "text": text, "rouge": 1}
    return [*rows, kept]


def model_parts(model: str, share: float, seed: int) -> dict[str, dict]:
    """The content of one model's files, by part, with numbers drawn at random."""
    rng = np.random.default_rng(seed)
    text = TRUTH if share > 0.5 else "…"
    greedy = greedy_leakage([dataclasses.replace(judged("forget", 0, text), rouge=share)])
    point = {"mean": share, "facts": share, "secret_rate": share}
    curve = [
        {"steps": steps, "untrained": {"mean": 0.0, "facts": 0.0, "secret_rate": share * steps / 4},
         "trained": point, "probability": 0.5}
        for steps in (0, 1, 2, 4)
    ]  # fmt: skip
    before = np.random.default_rng(0).random(500)
    measures = {
        "unlearn_quality": 100 * (1 - share), "utility": 95.0, "rouge_forget": share,
        "rouge_retain": 0.95, "secret_leak_rate": share, "degenerate_rate": 0.0,
    }  # fmt: skip
    return {
        "quality": {"measures": measures, "answers": said(model)},
        "sampling": attack(rng, share),
        "prefilling": {"prefix": "The", "greedy": greedy, "sampled": attack(rng, share)},
        "rewording": {"wordings": 6, "greedy": greedy, "sampled": attack(rng, share)},
        "least_likely": least_likely_attack(list(rng.dirichlet(np.ones(4), QUESTIONS))),
        "side_effects": {
            "text": "abc", "watched": list(range(0, 500, 3)),
            "probabilities": np.clip(before + (share - 1) * rng.normal(0, 0.1, 500), 0, 1).tolist(),
        },
        "tofu": {
            "summary": {"forget_quality": 0.2, "privleak": -12.5, "mia_min_k": 0.75,
                        "mia_loss": 0.5, "exact_memorization": share},
            "missing": {"model utility": "the data allows no wf_Q_A_Prob"},
        },
        "relearning": {
            kind: {"rows": [0, 1], "curve": curve, "after": again(rng, share)}
            for kind in ("forget", "benign")
        },
        "quantisation": {bits: again(rng, share) for bits in ("8", "4")},
    }  # fmt: skip


def write_evaluation(directory: Path, models=MODELS, parts=SUITES["full"], **changes) -> Path:
    """Write a finished evaluation.

    The first model is evaluated; the second is the one before unlearning.
    """
    for seed, model in enumerate(models):
        share = {"target": 1.0, "npo": 0.9}.get(model, 0.3)
        found = model_parts(model, share, seed)
        for name in parts:
            content = {**found[name], "seconds": 1.5, "tokens": 300}
            write_json(directory / "models" / model / f"{name}.json", content)
        write_json(
            directory / "models" / model / "model.json", {"path": model, "weights": "ab" * 32}
        )
    summary = {
        "name": "trial", "suite": "full",
        **summarise_directory(directory / "models", list(models), parts),
        "data": write_data(directory / "data"), "versions": {"jax": "0.10.2"},
        "settings": {"suite": "full", "evaluation.attack_samples": SAMPLES, "redact": False},
        **changes,
    }  # fmt: skip
    write_json(directory / "summary.json", summary)
    (directory / "config.yaml").write_text(
        f"suite: full\ndata:\n  format: files\n  path: {directory / 'data'}\n"
        "  forget: forget.jsonl\n  retain: retain.jsonl\n"
    )
    return directory


def write_data(directory: Path) -> dict[str, str]:
    """Write the data set of the evaluation; its hashes."""
    row = {
        "question": QUESTION, "answer": TRUTH, "secret": SECRET,
        "paraphrased_question": f"Tell me: {QUESTION}", "paraphrased_answer": TRUTH,
    }  # fmt: skip
    write_json_lines(directory / "forget.jsonl", [row] * 8)
    write_json_lines(directory / "retain.jsonl", [{"question": "Norway?", "answer": "Oslo"}])
    files = DataConfig("files", str(directory), forget="forget.jsonl", retain="retain.jsonl")
    dataset = load_dataset(files)
    return Inputs(dataset, dataset.controls, None).hashes
