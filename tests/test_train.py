"""Whole runs on a tiny model: files, continuation, non-interference, clear errors."""

import json
import re
import shutil
import signal
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from conftest import assert_valid_json
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from pmc_jax import ask, train
from pmc_jax.data.prompts import PromptTemplate
from pmc_jax.training import loop
from pmc_jax.training import run as training_run
from pmc_jax.unlearning.pmc.selection import categorical, selection_keys

MEASURES = {
    "unlearn_quality",
    "utility",
    "rouge_forget",
    "rouge_paraphrase",
    "rouge_retain",
    "rouge_world_facts",
    "rouge_real_authors",
    "worst_case_leakage",
}
CHAT_TEMPLATE = (
    "<s>{% for m in messages %}[{{ m.role }}] {{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)


def call(module, *arguments: str, monkeypatch) -> None:
    """Run the command in this process, with the arguments of a user."""
    monkeypatch.setattr(sys, "argv", ["command", *arguments])
    module.main()


@pytest.fixture
def run(checkpoint_dir, tofu_dir, tmp_path, monkeypatch):
    """Run `pmc_jax.train` for three short epochs; return the run's directory."""

    def go(*arguments: str, name: str = "tiny", data: Path = tofu_dir) -> Path:
        call(
            train, "experiment=tofu_llama3_2_3b", f"model.path={checkpoint_dir}",
            f"data.path={data}", "prompt.template=plain", "prompt.system=null",
            "model.dtype=float32",
            "model.remat=none", f"runs_dir={tmp_path / 'runs'}", f"name={name}",
            "method.samples=3", "method.max_new_tokens=8", "training.epochs=3",
            "training.batch_size=2", "training.accumulation=1", "training.max_length=64",
            "optimizer.learning_rate=1e-3", "evaluation.max_new_tokens=8",
            "evaluation.attack_samples=2", "data.retain_rows=4", "checkpoints.every=2",
            *arguments, monkeypatch=monkeypatch,
        )  # fmt: skip
        return tmp_path / "runs" / name

    return go


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def metrics(directory: Path) -> list[dict]:
    """The logged steps without their times."""
    return [
        {**row, "seconds": None, "per_second": None} for row in lines(directory / "metrics.jsonl")
    ]


def weights(directory: Path) -> dict[str, np.ndarray]:
    return load_file(directory / "model" / "model.safetensors")


def assert_same_run(a: Path, b: Path) -> None:
    assert metrics(a) == metrics(b)
    first, second = weights(a), weights(b)
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])


def test_a_run_leaves_every_file(run, checkpoint_dir, capsys):
    directory = run()
    assert_valid_json(directory)
    printed = capsys.readouterr().out
    assert "Unlearn quality" in printed and str(directory / "report") in printed
    summary = json.loads((directory / "summary.json").read_text())
    assert summary["before"].keys() >= MEASURES and summary["after"].keys() >= MEASURES
    assert all(0 <= summary["after"][key] <= 100 for key in MEASURES)
    steps = lines(directory / "metrics.jsonl")
    assert [row["step"] for row in steps] == list(range(6))
    assert [len(row["questions"]) for row in steps] == [2, 1] * 3
    rates = [1e3 * row["learning_rate"] for row in steps]
    assert rates == pytest.approx([0, 0.5, 1, 0.75, 0.5, 0.25])
    for row in steps:
        assert row["loss"] == pytest.approx(
            row["forget_loss"] + 1.25 * row["retain_loss"], rel=1e-5
        )
        assert {"sample", "score", "train", "total"} <= row["seconds"].keys()
        assert row["per_second"]["train_tokens"] > 0 and "mfu" not in row["per_second"]
    assert list((directory / "tensorboard").glob("events*"))
    samples = lines(directory / "samples.jsonl")
    sets = {row["set"] for row in samples}
    assert sets == {"forget", "paraphrase", "retain", "world_facts", "real_authors"}
    assert (directory / "report" / "index.html").stat().st_size > 10_000
    assert "learning_rate: 0.001" in (directory / "config.yaml").read_text()

    model = AutoModelForCausalLM.from_pretrained(directory / "model")
    tokenizer = AutoTokenizer.from_pretrained(directory / "model")
    changed = weights(directory)
    assert any(
        (changed[k] != v).any() for k, v in load_file(checkpoint_dir / "model.safetensors").items()
    )
    row = next(row for row in samples if row["set"] == "forget")
    ids = tokenizer(f"Question: {row['question']}\nAnswer:", return_tensors="pt").input_ids
    with torch.no_grad():
        answer = model.generate(ids, max_new_tokens=8, do_sample=False)[0, ids.shape[1] :]
    assert tokenizer.decode(answer, skip_special_tokens=True).strip() == row["after"]


@pytest.mark.slow
def test_the_same_command_again_and_other_settings(run, capsys):
    directory = run()
    questions = [row["questions"] for row in metrics(directory)]
    before = {p: p.read_bytes() for p in directory.rglob("*.json*")}
    run()
    assert "finished run" in capsys.readouterr().out
    assert {p: p.read_bytes() for p in directory.rglob("*.json*")} == before
    with pytest.raises(SystemExit) as stop:
        run("seed=1")
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1
    assert "seed (there 0, now 1)" in error and "overwrite=true" in error
    assert {p: p.read_bytes() for p in directory.rglob("*.json*")} == before
    exported = directory / "model" / "model.safetensors"
    whole = exported.read_bytes()
    exported.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(SystemExit) as stop:
        run()
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1
    assert f"{exported} is not what the run exported; delete" in error
    (directory / "summary.json").unlink()
    (directory / "metrics.jsonl").unlink()
    run()
    assert exported.read_bytes() == whole
    assert {p: p.read_bytes() for p in before if "summary" not in p.name} == {
        p: content for p, content in before.items() if "summary" not in p.name
    }
    run("seed=1", "overwrite=true")
    assert [row["questions"] for row in metrics(directory)] != questions


@pytest.mark.slow
def test_a_run_of_an_older_layout_is_refused(run, capsys):
    directory = run()
    inputs = json.loads((directory / "inputs.json").read_text())
    del inputs["layout"]
    (directory / "inputs.json").write_text(json.dumps(inputs))
    before = {p: p.read_bytes() for p in directory.rglob("*") if p.is_file()}
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        run()
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1
    assert f"{directory} holds a run of an older version of pmc_jax" in error
    assert {p: p.read_bytes() for p in directory.rglob("*") if p.is_file()} == before


@pytest.mark.slow
@pytest.mark.parametrize("stop_at", [1, 3, 5])
def test_a_stopped_run_continues_bit_for_bit(run, stop_at, monkeypatch):
    whole = run(name="whole")
    real = loop.steps

    def stopping(*arguments):
        for state, record in real(*arguments):
            if record.step == stop_at:
                raise RuntimeError("the machine is gone")
            yield state, record

    monkeypatch.setattr(loop, "steps", stopping)
    with pytest.raises(SystemExit):
        run(name="parts")
    monkeypatch.setattr(loop, "steps", real)
    assert_same_run(whole, run(name="parts"))


@pytest.mark.slow
def test_a_continued_run_keeps_its_sizes(run, monkeypatch):
    """A run continues with the sizes that it began with, however little memory is left."""
    asked: list[tuple] = []
    real, steps = training_run.sizes, loop.steps

    def sizes(*arguments, **settings):
        asked.append((arguments, settings))
        return real(*arguments, **settings)

    def stopping(*arguments):
        for state, record in steps(*arguments):
            if record.step == 2:
                signal.raise_signal(signal.SIGTERM)
            yield state, record

    monkeypatch.setattr(training_run, "sizes", sizes)
    free = ["training.decode_batch=auto", "training.micro_batch=auto"]
    whole = run(*free, name="whole")
    arguments, settings = asked[0]
    assert real(*arguments, **settings | {"free": 0}) != real(*arguments, **settings)
    monkeypatch.setattr(loop, "steps", stopping)
    with pytest.raises(SystemExit):
        run(*free, name="parts")
    monkeypatch.setattr(loop, "steps", steps)
    monkeypatch.setattr(training_run, "free_memory", lambda: 0)
    assert_same_run(whole, run(*free, name="parts"))
    assert len(asked) == 2  # not when it continues


@pytest.mark.slow
def test_sigterm_saves_the_step_and_stops(run, monkeypatch, capsys):
    whole = run(name="whole")
    real = loop.steps

    def terminated(*arguments):
        for state, record in real(*arguments):
            if record.step == 2:  # no checkpoint is due after this step
                signal.raise_signal(signal.SIGTERM)
            yield state, record

    monkeypatch.setattr(loop, "steps", terminated)
    with pytest.raises(SystemExit) as ended:
        run(name="parts")
    assert ended.value.code == 143
    assert "stopped after step 3 of 6" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    monkeypatch.setattr(loop, "steps", real)
    # What has become of these files in the meantime changes nothing.
    directory = whole.parent / "parts"
    (directory / "metrics.jsonl").write_bytes(b"\xff damaged")
    before = directory / "evaluation" / "before.json"
    before.write_bytes(before.read_bytes().replace(b'"rouge_retain": 0', b'"rouge_retain": 1'))
    (directory / "model").mkdir()
    (directory / "model" / "model.safetensors").write_bytes(b"of a run that was killed")
    (directory / "summary.json.partial").write_text("{")
    run(name="parts")
    told = capsys.readouterr()
    assert "continuing after step 3 of 6" in told.out
    assert_same_run(whole, directory)
    assert not list(directory.rglob("*.partial"))
    answers = [
        json.loads((place / "evaluation/before.json").read_text())["measures"]
        for place in (whole, directory)
    ]
    assert answers[0] == answers[1]
    log = (directory / "log.txt").read_text()
    assert log.count("--- ") == 2 and "stopped after step 3 of 6" in log
    assert "before.json: its content is not what was written; it is measured again" in log


def test_forget_answers_cannot_matter(run, tofu_dir, tmp_path):
    """Non-interference: noise in place of the answers gives the same weights and logs."""
    noise = tmp_path / "noise"
    shutil.copytree(tofu_dir, noise)
    for path in noise.glob("forget10*.json"):
        rows = lines(path)
        for row in rows:
            for key in ("answer", "paraphrased_answer"):
                if key in row:
                    row[key] = "zq vx 17 kk"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    truth, noisy = run(name="truth"), run(name="noise", data=noise)
    assert_same_run(truth, noisy)
    told = "".join(p.read_text(encoding="utf-8") for p in noisy.rglob("*.json*"))
    assert "zq vx" not in told


@pytest.mark.slow
def test_own_files_need_only_questions(run, tmp_path):
    forget, retain = tmp_path / "forget.jsonl", tmp_path / "retain.jsonl"
    forget.write_text('{"question": "Where was Mara Ostberg born?"}\n')
    retain.write_text('{"question": "Where is Oslo?", "answer": "In Norway."}\n')
    directory = run(
        "data.format=files", f"data.forget={forget}", f"data.retain={retain}",
        data=tmp_path, name="own",
    )  # fmt: skip
    summary = json.loads((directory / "summary.json").read_text())
    assert summary["after"]["unlearn_quality"] is None
    assert summary["after"]["worst_case_leakage"] is None
    assert summary["after"]["degenerate_rate"] is not None
    (row,) = [row for row in lines(directory / "samples.jsonl") if row["set"] == "forget"]
    assert row["question"] == "Where was Mara Ostberg born?" and row["rouge_after"] is None
    assert summary["after"]["utility"] is not None


@pytest.mark.slow
def test_a_chat_model_with_the_published_settings(
    run, checkpoint_dir, tofu_dir, tmp_path, monkeypatch
):
    model = tmp_path / "chat"
    shutil.copytree(checkpoint_dir, model)
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(model)
    call(
        train, "experiment=tofu_llama3_2_3b", f"model.path={model}", f"data.path={tofu_dir}",
        f"runs_dir={tmp_path / 'runs'}", "name=chat", "training.epochs=1",
        "method.max_new_tokens=4", "evaluation.max_new_tokens=4", "evaluation.attack_samples=0",
        monkeypatch=monkeypatch,
    )  # fmt: skip
    summary = json.loads((tmp_path / "runs" / "chat" / "summary.json").read_text())
    settings = summary["settings"]
    published = {
        "method.samples": 20,
        "method.temperature": 0.9,
        "method.top_k": 50,
        "method.top_p": 0.95,
        "method.min_len": 0,
        "method.retain_weight": 1.25,
        "training.batch_size": 8,
        "training.accumulation": 2,
        "optimizer.learning_rate": 1e-5,
        "optimizer.weight_decay": 0.01,
        "optimizer.max_grad_norm": None,
        "prompt.date_string": "10 Apr 2025",
    }
    assert {key: settings[key] for key in published} == published
    assert (tmp_path / "runs" / "chat" / "model" / "chat_template.jinja").is_file()


@pytest.mark.slow
def test_few_shapes_are_compiled(run, monkeypatch):
    """A step is compiled once for each shape of its rows, and there are few shapes."""
    categorical.clear_cache()
    selection_keys.clear_cache()
    made, shapes = [], set()
    real = training_run.make_train_step

    def noting(*arguments, **options):
        made.append(real(*arguments, **options))

        def step(state, batch, *arguments):
            shapes.add(batch.tokens.shape)
            return made[-1](state, batch, *arguments)

        return step

    monkeypatch.setattr(training_run, "make_train_step", noting)
    run("training.epochs=6", "method.selection_temperature=0.3")
    assert made[0]._cache_size() == len(shapes) <= 3
    assert categorical._cache_size() == selection_keys._cache_size() == 1


@pytest.mark.slow
@pytest.mark.parametrize("file", ["forget10.json", "retain90.json", "world_facts.json"])
def test_changed_data_does_not_continue_a_run(file, run, tofu_dir, monkeypatch, capsys):
    def stopping(*_):
        raise RuntimeError("the machine is gone")
        yield

    monkeypatch.setattr(loop, "steps", stopping)
    with pytest.raises(SystemExit):
        run()
    capsys.readouterr()
    for name in (file, file.replace(".json", "_perturbed.json")):
        path = tofu_dir / name
        if path.is_file():
            rows = lines(path)
            rows[-1]["question"] = "Really?"
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(SystemExit) as stop:
        run()
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1
    changed = {"forget10.json": "forget questions", "retain90.json": "retain pairs"}
    assert "began with other" in error and changed.get(file, "evaluation rows") in error


MISTAKES = {
    "unknown key": (["training.epoch=3"], r"unknown .* key training\.epoch;.*training\.epochs"),
    "wrong type": (["training.epochs=many"], r"training\.epochs=many: expected an integer"),
    "unknown experiment": (["experiment=tofu"], r"experiment=tofu: expected .*tofu_llama3_2_3b"),
    "bad choice": (["optimizer.schedule=cosine"], r"optimizer\.schedule=cosine: expected one of"),
    "bad number": (["method.samples=0"], r"method\.samples=0: expected at least 1"),
    "top_p": (["method.top_p=1.5"], r"method\.top_p=1\.5: expected at most 1"),
    "missing model": (["model.path=./nowhere"], r"\./nowhere: no such directory"),
    "missing data": (["data.path=./nowhere"], r"nowhere: no such directory"),
    "unknown split": (["data.forget=forget99"], r"forget99.*forget10"),
    "nested name": (["name=a/b"], r"name=a/b: expected a plain directory name"),
    "misspelt set": (["data.world_facts=facts"], r"data\.world_facts=facts: no such file"),
    "long prompt": (["training.max_length=12"], r"forget10\S+, \w+ \d+: the prompt has \d+ tokens"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_get_one_line_and_write_nothing(name, run, tmp_path, capsys):
    arguments, message = MISTAKES[name]
    with pytest.raises(SystemExit) as stop:
        run(*arguments)
    captured = capsys.readouterr()
    assert stop.value.code == 2
    assert captured.err.count("\n") == 1, captured.err
    assert re.search(message, captured.err), captured.err
    assert captured.err.startswith("error: ")
    assert not (tmp_path / "runs").exists()


def test_overwrite_spares_what_the_run_reads_and_what_is_no_run(
    run, checkpoint_dir, tmp_path, capsys
):
    inside = tmp_path / "runs" / "tiny" / "model"
    shutil.copytree(checkpoint_dir, inside)
    with pytest.raises(SystemExit) as stop:
        run(f"model.path={inside}", "overwrite=true")
    assert stop.value.code == 2 and "lies in" in capsys.readouterr().err
    (tmp_path / "runs" / "tiny" / "config.yaml").write_text("theme: dark\n")
    with pytest.raises(SystemExit) as stop:
        run("overwrite=true")
    assert stop.value.code == 2 and "holds no run" in capsys.readouterr().err
    assert (inside / "model.safetensors").is_file()


def broken_model(change, source: Path, target: Path) -> Path:
    shutil.copytree(source, target)
    change(target)
    return target


def edit_config(**changes):
    def change(directory: Path) -> None:
        path = directory / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return change


def remove_tokenizer(directory: Path) -> None:
    for path in directory.glob("tokenizer*"):
        path.unlink()


def drop_tensor(directory: Path) -> None:
    from safetensors.numpy import save_file

    tensors = load_file(directory / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, directory / "model.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (edit_config(architectures=["GPT2LMHeadModel"]), "GPT2LMHeadModel"),
        (edit_config(hidden_size=30), "hidden|shape"),
        (remove_tokenizer, "no tokenizer"),
        (drop_tensor, r"model\.layers\.1\.mlp\.up_proj\.weight"),
    ],
)
def test_broken_models_are_named(change, message, run, checkpoint_dir, tmp_path, capsys):
    model = broken_model(change, checkpoint_dir, tmp_path / "broken")
    with pytest.raises(SystemExit) as stop:
        run(f"model.path={model}")
    captured = capsys.readouterr()
    assert stop.value.code == 2 and captured.err.count("\n") == 1
    assert re.search(message, captured.err), captured.err
    assert not (tmp_path / "runs").exists()


def test_a_malformed_row_is_named(run, tofu_dir, tmp_path, capsys):
    path = tofu_dir / "retain90.json"
    path.write_text(path.read_text() + '{"question": "What?"}\n')
    with pytest.raises(SystemExit) as stop:
        run()
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1
    assert "retain90.json" in error and "line 4" in error and "answer" in error
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_the_run(run, capsys):
    with pytest.raises(SystemExit) as stop:
        run(
            "optimizer.learning_rate=1", "optimizer.weight_decay=100", "training.epochs=40",
            "optimizer.schedule=constant",
        )  # fmt: skip
    error = capsys.readouterr().err
    assert stop.value.code == 2
    what = r"(loss is (nan|inf|-inf)|a weight is not finite|the logits are not finite)"
    assert re.search(rf"{what} at step \d", error)
    assert "last good checkpoint" in error and "(questions [" in error


def test_ask_prints_the_greedy_answer(checkpoint_dir, capsys, monkeypatch):
    question = "Where was Mara Ostberg born?"
    call(ask, f"model.path={checkpoint_dir}", f'question="{question}"', "max_new_tokens=9",
         monkeypatch=monkeypatch)  # fmt: skip
    printed = capsys.readouterr().out.splitlines()
    model = AutoModelForCausalLM.from_pretrained(checkpoint_dir)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint_dir)
    ids = tokenizer(f"Question: {question}\nAnswer:", return_tensors="pt").input_ids
    with torch.no_grad():
        answer = model.generate(ids, max_new_tokens=9, do_sample=False)[0, ids.shape[1] :]
    expected = tokenizer.decode(answer, skip_special_tokens=True).strip()
    assert printed[-1] == expected.splitlines()[-1]


@pytest.mark.parametrize(
    "question",
    [
        "Who is Ann's father?",
        "a, b = (c) {d} [e]",
        'the "river" \\ sea',
        "a: b",
        r"costs ${5} or \${x} or \\${y}",
    ],
)
def test_ask_takes_any_question(question, checkpoint_dir, tmp_path, monkeypatch):
    """Commas, quotes, brackets and braces have a meaning in Hydra's grammar."""
    out = tmp_path / "answers.jsonl"
    call(ask, f"model.path={checkpoint_dir}", f"question={question}", "max_new_tokens=1",
         f"out={out}", monkeypatch=monkeypatch)  # fmt: skip
    assert [row["question"] for row in lines(out)] == [question]


def test_ask_shows_control_characters(checkpoint_dir, capsys, monkeypatch):
    """A terminal would obey them; line breaks and tabs are kept."""
    monkeypatch.setattr(PromptTemplate, "decode", lambda *_: "a\x1b[2Jb\n\tc\u202e\x9b")
    call(ask, f"model.path={checkpoint_dir}", "question=Who?", "max_new_tokens=1",
         monkeypatch=monkeypatch)  # fmt: skip
    assert capsys.readouterr().out == "a\\x1b[2Jb\n\tc\\u202e\\x9b\n"


@pytest.mark.slow
def test_ask_answers_a_file(checkpoint_dir, tmp_path, capsys, monkeypatch):
    questions, out = tmp_path / "questions.jsonl", tmp_path / "answers.jsonl"
    questions.write_text('{"question": "Who?"}\n{"question": "Where is Oslo?"}\n')
    arguments = [
        f"model.path={checkpoint_dir}", f"questions={questions}", f"out={out}", "n=3",
        "temperature=1.0", "top_k=20", "top_p=0.9", "max_new_tokens=6", "prefix=The answer is:",
    ]  # fmt: skip
    call(ask, *arguments, monkeypatch=monkeypatch)
    rows = lines(out)
    assert [row["question"] for row in rows] == ["Who?", "Where is Oslo?"]
    for row in rows:
        assert len(row["answers"]) == len(row["token_ids"]) == 3
        assert all(answer.startswith("The answer is:") for answer in row["answers"])
        assert all(len(ids) <= 6 for ids in row["token_ids"])
    with pytest.raises(SystemExit) as stop:
        call(ask, *arguments, monkeypatch=monkeypatch)
    assert stop.value.code == 2 and "exists already" in capsys.readouterr().err
    call(ask, *arguments, "overwrite=true", monkeypatch=monkeypatch)
    assert lines(out) == rows
    call(ask, *arguments, "overwrite=true", "seed=1", monkeypatch=monkeypatch)
    assert lines(out) != rows


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "measured"),
    [
        (["evaluation.before=false"], (False, True)),
        (["evaluation.after=false"], (True, False)),
        (["evaluation.before=false", "evaluation.after=false"], (False, False)),
    ],
)
def test_evaluations_that_are_switched_off(changes, measured, run, capsys):
    directory = run(*changes, "training.epochs=1", "evaluation.attack_samples=0")
    summary = json.loads((directory / "summary.json").read_text())
    assert tuple(bool(summary[when]) for when in ("before", "after")) == measured
    written = {path.stem for path in (directory / "evaluation").glob("*.json")}
    assert written == {n for n, is_on in zip(("before", "after"), measured, strict=True) if is_on}
    assert (directory / "report" / "index.html").exists() == measured[1]
    told = capsys.readouterr().out
    assert "Next:" in told and f"model.path={directory / 'model'}" in told
    assert ("evaluating before" in told, "evaluating after" in told) == measured


def test_questions_of_a_file_with_other_columns(checkpoint_dir, tmp_path, capsys, monkeypatch):
    """The same keys as for the data of a run."""
    (tmp_path / "q.csv").write_text("prompt,rolle\nWho?,Be brief.\n")
    arguments = [
        f"model.path={checkpoint_dir}", f"questions={tmp_path / 'q.csv'}",
        f"out={tmp_path / 'a.jsonl'}", "max_new_tokens=1", "overwrite=true",
    ]  # fmt: skip
    columns = ["data.fields.question=prompt", "data.fields.system=rolle"]
    call(ask, *arguments, *columns, monkeypatch=monkeypatch)
    assert [row["question"] for row in lines(tmp_path / "a.jsonl")] == ["Who?"]
    for more, said in (
        ([], "data.fields.question=prompt (in Python, "),
        (["data.fields.question=promt"], "data.fields.question=promt: no file has this column"),
        (["data.fields.quest=prompt"], "the nearest valid key is data.fields.question"),
    ):
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            call(ask, *arguments, *more, monkeypatch=monkeypatch)
        error = capsys.readouterr().err
        assert stop.value.code == 2 and said in error and error.count("\n") == 1


class Service(ModuleType):
    """Weights & Biases without a network; `key` is whether the user has one."""

    def __init__(self, key: bool) -> None:
        super().__init__("wandb")
        self.key, self.given, self.logged, self.finished = key, {}, [], False

    def login(self) -> None:
        if not self.key:
            raise RuntimeError("api_key not configured (no-tty)\n  call wandb.login(key=[key])")

    def init(self, **given: object) -> "Service":
        self.given = given
        return self

    def log(self, row: dict, step: int) -> None:
        self.logged.append((step, row))

    def finish(self) -> None:
        self.finished = True


@pytest.mark.parametrize("service", [None, Service(key=False)], ids=["absent", "without a key"])
def test_weights_and_biases_is_missed_before_anything_is_done(service, run, capsys, monkeypatch):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setitem(sys.modules, "wandb", service)
    with pytest.raises(SystemExit) as stop:
        run("logging.wandb=true")
    told = capsys.readouterr()
    assert stop.value.code == 2 and "evaluating" not in told.out
    assert told.err.splitlines()[-1].startswith("error: logging.wandb=true: ")
    assert ("pmc_jax[wandb]" if service is None else "WANDB_API_KEY") in told.err
    assert told.err.count("error") == 1 and "Traceback" not in told.err


@pytest.mark.slow
def test_weights_and_biases_gets_every_step(run, monkeypatch):
    service = Service(key=True)
    monkeypatch.setitem(sys.modules, "wandb", service)
    off = ["evaluation.before=false", "evaluation.after=false"]
    directory = run("logging.wandb=true", "training.epochs=1", *off)
    assert service.given["name"] == "tiny" and service.finished
    assert service.given["config"]["method.samples"] == 3
    rows = lines(directory / "metrics.jsonl")
    assert [step for step, _ in service.logged] == [row["step"] for row in rows] == [0, 1]
    assert [row["loss"] for _, row in service.logged] == [row["loss"] for row in rows]
