"""A whole PMC run and the same in PyTorch: `python benchmarks/end_to_end.py [--tofu DIR MODEL]`.

Measures the demo on the bundled model and, with `--tofu`, a part of TOFU with the published number
of samples, from a model of the same size. Times are wall-clock time from the original answers to
the last step. Ours include checkpoints and metrics. The other side is the same algorithm in a
straightforward form with transformers, rouge_score and torch.

Ours runs twice: with an empty compilation cache, and with the cache that the first run filled. Each
run is a process of its own. Not counted are loading, evaluation, and the compilation of the C++
kernels. All runs follow the same configuration, each repetition with another seed, and the same
evaluation measures their models.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import hydra
import jax
import numpy as np
import torch
from omegaconf import OmegaConf
from rouge_score.rouge_scorer import RougeScorer
from transformers import AutoModelForCausalLM, get_linear_schedule_with_warmup

from pmc_jax import api, train
from pmc_jax.cli.config import Config, config_directory
from pmc_jax.data import load_dataset
from pmc_jax.data.batches import retain_draw
from pmc_jax.data.files import to_json
from pmc_jax.evaluation import quality
from pmc_jax.language_model import describe, load_language_model, path_of
from pmc_jax.runs.summary import step_seconds
from pmc_jax.training.run import Trained, train_model

ROOT = Path(__file__).parent.parent
DEMO = ["experiment=demo"]


def tofu(directory: str, model: str, epochs: int) -> list[str]:
    """The published settings of Llama-3.2-3B, adapted to a small model on a CPU."""
    return [
        "experiment=tofu_llama3_2_3b", f"data.path={directory}", f"model.path={model}",
        "model.dtype=float32", "prompt.template=plain", "prompt.system=null",
        'prompt.question="Question: {question}\nAnswer:"', 'prompt.answer=" {answer}"',
        "training.batch_size=16", "training.accumulation=1", f"training.epochs={epochs}",
        "optimizer.learning_rate=5e-4",
    ]  # fmt: skip


def composed(overrides: list[str]) -> Config:
    """The configuration of `pmc_jax.train` with these overrides."""
    with hydra.initialize_config_dir(str(config_directory()), version_base="1.3"):
        return OmegaConf.to_object(hydra.compose("train", overrides))


def theirs(overrides: list[str], directory: Path) -> dict[str, Any]:
    """Run PMC in PyTorch; write the model to `directory` and return the seconds."""
    cfg = composed(overrides)
    method, training, adam = cfg.method, cfg.training, cfg.optimizer
    template = describe(cfg.model, cfg.prompt).template
    data = load_dataset(cfg.data)
    prompts = [template.encode_prompt(row.question) for row in data.forget]
    retain = [
        (template.encode_prompt(row.question), template.encode_answer(row.answer))
        for row in data.retain
    ]
    end, tokenizer = template.end_id, template.tokenizer
    torch.manual_seed(cfg.seed)
    model = AutoModelForCausalLM.from_pretrained(path_of(cfg.model), dtype=torch.float32)
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    seconds = {"originals": 0.0, "sample": 0.0, "score": 0.0, "train": 0.0}
    tokens_sampled = questions_sampled = 0

    @torch.no_grad()
    def respond(questions: list[int], **options: Any) -> list[list[int]]:
        width = max(len(prompts[i]) for i in questions)
        rows = [[end] * (width - len(prompts[i])) + prompts[i] for i in questions]
        mask = [[0] * (width - len(prompts[i])) + [1] * len(prompts[i]) for i in questions]
        model.eval()
        found = model.generate(
            torch.tensor(rows), attention_mask=torch.tensor(mask),
            max_new_tokens=method.max_new_tokens or training.max_length - width - 1,
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
        if method.reject_wordless and not any(c.isalnum() for c in text):
            found = 1.0
        return min(found + (np.exp(-words) if words < method.min_len else 0), 1.0)

    def nll(pairs: list[tuple[list[int], list[int]]]) -> torch.Tensor:
        pairs = [(p, [*body(a)[: training.max_length - len(p) - 1], end]) for p, a in pairs]
        width = max(len(p) + len(a) for p, a in pairs)
        ids = torch.full((len(pairs), width), end)
        mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
        for row, (p, a) in enumerate(pairs):
            ids[row, : len(p) + len(a)] = torch.tensor([*p, *a])
            mask[row, : len(p) + len(a)] = 1
            labels[row, len(p) : len(p) + len(a)] = torch.tensor(a)
        return model(input_ids=ids, attention_mask=mask, labels=labels).loss

    count = len(prompts)
    respond([0], do_sample=True, top_k=method.top_k)  # as an evaluation before would have done
    started = time.perf_counter()
    originals: list[str] = []
    for first in range(0, count, training.decode_batch):
        asked = list(range(first, min(first + training.decode_batch, count)))
        originals += [text_of(row) for row in respond(asked, do_sample=False)]
    seconds["originals"] = time.perf_counter() - started
    best: dict[int, tuple[float, list[int]]] = {}
    named = list(model.named_parameters())
    plain = [p for n, p in named if "norm" in n or n.endswith("bias")]
    decayed = [p for n, p in named if not ("norm" in n or n.endswith("bias"))]
    optimizer = torch.optim.AdamW(
        [
            {"params": decayed, "weight_decay": adam.weight_decay},
            {"params": plain, "weight_decay": 0.0},
        ],
        lr=adam.learning_rate, betas=(adam.beta1, adam.beta2), eps=adam.epsilon,
    )  # fmt: skip
    steps = training.total_updates(count)
    warmup = round(adam.warmup_epochs * training.epoch_length(count))
    schedule = get_linear_schedule_with_warmup(optimizer, warmup, steps)
    for step in range(steps):
        clock = [time.perf_counter()]
        questions = training.visited(cfg.seed, step, count)
        wanted = [i for i in questions if i not in best or best[i][0] > 0]
        rows = respond(
            wanted, do_sample=True, temperature=method.temperature, top_k=method.top_k,
            top_p=method.top_p, num_return_sequences=method.samples,
        ) if wanted else []  # fmt: skip
        clock.append(time.perf_counter())
        questions_sampled += len(wanted)
        tokens_sampled += sum(min(len(body(row)) + 1, len(row)) for row in rows)
        for number, i in enumerate(wanted):
            own = rows[number * method.samples : (number + 1) * method.samples]
            scores = [score(i, text_of(row)) for row in own]
            chosen = int(np.argmin(scores))
            if i not in best or scores[chosen] <= best[i][0]:
                best[i] = scores[chosen], own[chosen]
        clock.append(time.perf_counter())
        drawn = retain_draw(cfg.seed, step, method.retain_per_forget * len(questions), len(retain))
        loss = nll([(prompts[i], best[i][1]) for i in questions])
        loss = loss + method.retain_weight * nll([retain[i] for i in drawn])
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        clock.append(time.perf_counter())
        for part, spent in zip(("sample", "score", "train"), np.diff(clock), strict=True):
            seconds[part] += float(spent)
    total = time.perf_counter() - started
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return {
        "seconds": total, "parts": seconds, "model": str(directory),
        "questions_sampled": questions_sampled, "tokens_sampled": tokens_sampled,
    }  # fmt: skip


def ours(overrides: list[str], directory: Path) -> dict[str, Any]:
    """Run ours in `directory`; return the seconds from the original answers to the last step."""
    place = [f"runs_dir={directory.parent}", f"name={directory.name}", "overwrite=true"]
    found: dict[str, Any] = {}

    def timed(*arguments: Any, **options: Any) -> Trained:
        started = time.perf_counter()
        trained = train_model(*arguments, **options)
        found["seconds"] = time.perf_counter() - started
        found["parts"] = {**trained.seconds, **step_seconds(trained.lines)}
        for key in ("questions_sampled", "tokens_sampled"):
            found[key] = sum(line[key] for line in trained.lines)
        return trained

    command = ["train", *overrides, *place, "evaluation.attack_samples=0"]
    with (
        mock.patch.object(api, "train_model", timed),
        mock.patch.object(sys, "argv", command),
        contextlib.redirect_stdout(sys.stderr),
    ):
        train.main()
    return {**found, "model": str(directory / "model")}


def measured(cfg: Config, directory: str) -> dict[str, float]:
    """Unlearn quality and utility of a model."""
    model = load_language_model(dataclasses.replace(cfg.model, path=directory), cfg.prompt)
    model = dataclasses.replace(model, dtype="float32")
    evaluation = dataclasses.replace(cfg.evaluation, attack_samples=0)
    sets = load_dataset(cfg.data).evaluation
    key, max_length = jax.random.key(0), cfg.training.max_length
    found = quality(model, sets, evaluation, key, max_length=max_length)["measures"]
    return {name: found[name] for name in ("unlearn_quality", "utility")}


THEIRS = "transformers + torch"
NAMES = {"pmc_jax, nothing compiled": "ours", "pmc_jax": "ours", THEIRS: "theirs"}
"""What is compared in turn: by name, the function that runs it."""


def apart(side: str, overrides: list[str], directory: Path, cache: Path) -> dict[str, Any]:
    """The result of `ours` or `theirs` in a process of its own, and the quality of its model."""
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(cache), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, __file__, f"--{side}", str(directory), *overrides], check=True,
        stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT,
    )  # fmt: skip
    row = json.loads(done.stdout.splitlines()[-1])
    return {**row, **measured(composed(overrides), row.pop("model"))}


def measure(overrides: list[str], repetitions: int) -> dict[str, Any]:
    """Run both sides in turn, each repetition with its own seed: seconds, tokens, quality."""
    load, rows = os.getloadavg()[0], {name: [] for name in NAMES}
    with tempfile.TemporaryDirectory() as scratch:
        for seed in range(repetitions):
            place, seeded = Path(scratch) / str(seed), [*overrides, f"seed={seed}"]
            for number, (name, side) in enumerate(NAMES.items()):
                directory = place / f"{side}-{number}"
                rows[name].append(apart(side, seeded, directory, place / "cache"))
    cfg = composed(overrides)
    before = measured(cfg, str(path_of(cfg.model)))
    return {"overrides": overrides, "rows": rows, "before": before, "load_average": load}


def show(title: str, found: dict[str, Any]) -> None:
    """Print a table: medians over the seeds, with the least and the greatest in brackets.

    Microseconds per token are those of the sampling part, with its compilation and scoring.
    """

    def over_seeds(values: Sequence[float], digits: int = 1) -> str:
        low, high = min(values), max(values)
        return f"{np.median(values):,.{digits}f} ({low:,.{digits}f}-{high:,.{digits}f})"

    print(f"\n{title} (load {found['load_average']:.1f})")
    columns = "seconds", "times as fast", "tokens sampled", "us per token", "UQ", "U"
    print(f"{'':<27}" + "".join(f"{column:>25}" for column in columns))
    reference = [row["seconds"] for row in found["rows"][THEIRS]]
    for name, rows in found["rows"].items():
        each = [1e6 * row["parts"]["sample"] / row["tokens_sampled"] for row in rows]
        cells = [
            over_seeds([row["seconds"] for row in rows]),
            over_seeds([a / row["seconds"] for a, row in zip(reference, rows, strict=True)]),
            over_seeds([row["tokens_sampled"] for row in rows], 0),
            over_seeds(each, 0),
            *(over_seeds([row[key] for row in rows]) for key in ("unlearn_quality", "utility")),
        ]
        print(f"{name:<27}" + "".join(f"{cell:>25}" for cell in cells))
    before = [f"{found['before'][key]:.1f}" for key in ("unlearn_quality", "utility")]
    print(f"{'before':<27}{'':>100}" + "".join(f"{cell:>25}" for cell in before), flush=True)


def main() -> None:
    """Measure, print tables, and write `benchmarks/end_to_end.json`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repetitions", type=int, default=3, help="number of seeds; %(default)s")
    parser.add_argument(
        "--tofu", nargs=2, metavar=("DIR", "MODEL"), help="also measure on TOFU's questions in DIR"
    )
    parser.add_argument("--epochs", type=int, default=8, help="epochs on TOFU; %(default)s")
    for side in ("--ours", "--theirs"):
        parser.add_argument(side, nargs="+", help="used by the benchmark's own processes")
    options = parser.parse_args()
    if options.ours or options.theirs:
        directory, *overrides = options.ours or options.theirs
        run = ours if options.ours else theirs
        print(to_json(run(overrides, Path(directory))))
        return
    result = {"demo": measure(DEMO, options.repetitions)}
    show("demo", result["demo"])
    if options.tofu:
        result["tofu"] = measure(tofu(*options.tofu, options.epochs), options.repetitions)
        show("part of TOFU", result["tofu"])
    (Path(__file__).parent / "end_to_end.json").write_text(to_json(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
