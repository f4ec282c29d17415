"""A whole PMC run beside one in PyTorch: `python benchmarks/end_to_end.py`.

The demo's unlearning on the bundled model, from the original answers to the last step: ours with
an empty store of compiled programs and with a filled one, and the same algorithm written with
transformers, rouge_score and torch as one would write it. Each run is a process of its own; what
all of them load and evaluate is not counted. Both results are measured by the same evaluation.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rouge_score.rouge_scorer import RougeScorer
from transformers import AutoModelForCausalLM, get_linear_schedule_with_warmup

ROOT = Path(__file__).parent.parent
PROMPT = {
    "template": "plain", "question": "Question: {question}\nAnswer:", "answer": " {answer}"
}  # fmt: skip
SEED, EPOCHS, BATCH, RETAIN, SAMPLES = 0, 14, 16, 2, 8
LEARNING_RATE, MIN_LEN, NEW_TOKENS, MAX_LENGTH = 3e-4, 4, 40, 96
"""The demo's settings (`configs/experiment/demo.yaml`, `configs/settings/demo/pmc.yaml`)."""


def theirs(directory: Path) -> dict[str, Any]:
    """PMC in PyTorch; leaves the model in `directory` and returns the seconds."""
    from pmc_jax.data import DataConfig, load_dataset
    from pmc_jax.data.batches import epoch_order, retain_draw
    from pmc_jax.data.prompts import PromptConfig
    from pmc_jax.pretrained import ModelSource, describe, path_of

    prompt = PromptConfig(**PROMPT)
    template = describe(ModelSource(), prompt).template
    data = load_dataset(DataConfig(path="bundled", forget="forget10", retain="retain90"))
    prompts = [template.encode_prompt(row.question) for row in data.forget]
    retain = [
        (template.encode_prompt(row.question), template.encode_answer(row.answer))
        for row in data.retain
    ]
    end, tokenizer = template.end_id, template.tokenizer
    torch.manual_seed(SEED)
    model = AutoModelForCausalLM.from_pretrained(path_of(ModelSource()))
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    started = time.perf_counter()

    @torch.no_grad()
    def respond(questions: list[int], **options: Any) -> list[list[int]]:
        width = max(len(prompts[i]) for i in questions)
        rows = [[end] * (width - len(prompts[i])) + prompts[i] for i in questions]
        mask = [[0] * (width - len(prompts[i])) + [1] * len(prompts[i]) for i in questions]
        model.eval()
        found = model.generate(
            torch.tensor(rows), attention_mask=torch.tensor(mask), max_new_tokens=NEW_TOKENS,
            eos_token_id=list(template.stop_ids), pad_token_id=end, **options,
        )  # fmt: skip
        model.train()
        return found[:, width:].tolist()

    def text_of(tokens: list[int]) -> str:
        return tokenizer.decode(tokens, skip_special_tokens=True).strip()

    def body(tokens: list[int]) -> list[int]:
        return tokens[: tokens.index(end)] if end in tokens else tokens

    def score(question: int, text: str) -> float:
        words = len(text.split(" "))
        found = scorer.score(originals[question], text)["rougeL"].recall
        if not any(c.isalnum() for c in text):
            found = 1.0
        return min(found + (np.exp(-words) if words < MIN_LEN else 0), 1.0)

    def nll(pairs: list[tuple[list[int], list[int]]]) -> torch.Tensor:
        width = max(len(p) + len(a) for p, a in pairs)
        ids = torch.full((len(pairs), width), end)
        mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
        for row, (p, a) in enumerate(pairs):
            ids[row, : len(p) + len(a)] = torch.tensor([*p, *a])
            mask[row, : len(p) + len(a)] = 1
            labels[row, len(p) : len(p) + len(a)] = torch.tensor(a)
        return model(input_ids=ids, attention_mask=mask, labels=labels).loss

    count = len(prompts)
    greedy = respond(list(range(count)), do_sample=False)
    originals = [text_of(row) for row in greedy]
    best: dict[int, tuple[float, list[int]]] = {}
    named = list(model.named_parameters())
    plain = [p for n, p in named if "norm" in n or n.endswith("bias")]
    decayed = [p for n, p in named if not ("norm" in n or n.endswith("bias"))]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.01}, {"params": plain, "weight_decay": 0.0}],
        lr=LEARNING_RATE,
    )
    per_epoch = -(-count // BATCH)
    schedule = get_linear_schedule_with_warmup(optimizer, per_epoch, EPOCHS * per_epoch)
    for step in range(EPOCHS * per_epoch):
        epoch, place = divmod(step, per_epoch)
        order = epoch_order(SEED, epoch, count)
        questions = [int(i) for i in order[place * BATCH : (place + 1) * BATCH]]
        wanted = [i for i in questions if i not in best or best[i][0] > 0]
        if wanted:
            rows = respond(
                wanted, do_sample=True, temperature=1.0, top_k=0, num_return_sequences=SAMPLES
            )
            for number, i in enumerate(wanted):
                own = rows[number * SAMPLES : (number + 1) * SAMPLES]
                scores = [score(i, text_of(row)) for row in own]
                chosen = int(np.argmin(scores))
                if i not in best or scores[chosen] <= best[i][0]:
                    best[i] = scores[chosen], [*body(own[chosen]), end]
        drawn = retain_draw(SEED, step, RETAIN * len(questions), len(retain))
        loss = nll([(prompts[i], best[i][1]) for i in questions])
        loss = loss + nll([(list(p), list(a)) for p, a in (retain[i] for i in drawn)])
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    seconds = time.perf_counter() - started
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return {"seconds": seconds, "model": str(directory)}


def ours(directory: Path, cache: Path) -> dict[str, Any]:
    """Our run; returns the seconds of original answers and steps, compilation included."""
    command = [sys.executable, "-m", "pmc_jax.train", f"runs_dir={directory}", f"seed={SEED}"]
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(cache), "PYTHONPATH": str(ROOT)}
    subprocess.run(
        [*command, "overwrite=true", "evaluation.attack_samples=0"], check=True,
        env=environment, cwd=ROOT, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    found = json.loads((directory / "demo/summary.json").read_text())["seconds"]
    parts = ("originals", "sample", "score", "train", "checkpoint")
    return {
        "seconds": sum(found[part] for part in parts),
        "parts": {part: found[part] for part in parts},
        "model": str(directory / "demo/model"),
    }


def measured(directory: str) -> dict[str, float]:
    """Unlearn quality and utility of a model."""
    import jax

    from pmc_jax.data import DataConfig, load_dataset
    from pmc_jax.data.prompts import PromptConfig
    from pmc_jax.evaluation import EvaluationConfig, Respondent, quality
    from pmc_jax.pretrained import ModelSource, load_pretrained

    prompt = PromptConfig(**PROMPT)
    model, params = load_pretrained(ModelSource(path=directory), prompt)
    data = load_dataset(
        DataConfig(path="bundled", forget="forget10", retain="retain90", retain_rows=None)
    )
    respondent = Respondent(params, model.cfg, model.template, MAX_LENGTH, "float32")
    cfg = EvaluationConfig(max_new_tokens=NEW_TOKENS, attack_samples=0)
    found = quality(respondent, data.evaluation, cfg, jax.random.key(0))["measures"]
    return {name: found[name] for name in ("unlearn_quality", "utility")}


def main() -> None:
    """Measure, print a table, and write `benchmarks/end_to_end.json`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--theirs", type=Path, help="for the benchmark's own processes")
    options = parser.parse_args()
    if options.theirs:
        print(json.dumps(theirs(options.theirs)))
        return
    names = "pmc_jax, nothing compiled", "pmc_jax", "transformers + torch"
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        for repetition in range(options.repetitions):
            cache = place / f"cache-{repetition}"
            rows[names[0]].append(ours(place / "ours", cache))
            rows[names[1]].append(ours(place / "ours", cache))
            command = [sys.executable, __file__, "--theirs", str(place / f"theirs-{repetition}")]
            done = subprocess.run(
                command, check=True, capture_output=True, text=True,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )  # fmt: skip
            rows[names[2]].append(json.loads(done.stdout.splitlines()[-1]))
        results = {name: measured(rows[name][-1]["model"]) for name in names[1:]}
    medians = {name: float(np.median([r["seconds"] for r in rows[name]])) for name in names}
    print(f"{'':<28}{'median s':>10}{'ratio':>8}{'UQ':>8}{'U':>8}   load {load:.1f}")
    for name, median in medians.items():
        found = results.get(name, results[names[1]])
        print(
            f"{name:<28}{median:>10.1f}{medians[names[2]] / median:>7.1f}x"
            f"{found['unlearn_quality']:>8.1f}{found['utility']:>8.1f}"
        )
    seconds = {name: [{k: v for k, v in r.items() if k != "model"} for r in found]
               for name, found in rows.items()}  # fmt: skip
    result = {"rows": seconds, "results": results, "load_average": load}
    (Path(__file__).parent / "end_to_end.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
