"""`python -m pmc_jax.evaluate`: files, continuation by parts, comparison, clear errors."""

import json
import re
import shutil
import sys
from pathlib import Path

import jax
import pytest
from conftest import assert_valid_json, rewrite, slow_but, tensors_of

from pmc_jax import report
from pmc_jax.cli import evaluate
from pmc_jax.evaluation import directory as evaluation_directory
from pmc_jax.evaluation.certificates import mean_leak_bound
from pmc_jax.evaluation.parts import SUITES

PAPER = ("quality", "sampling", "prefilling", "least_likely", "side_effects")


@pytest.fixture
def run(checkpoint_dir, tofu_dir, tmp_path, monkeypatch):
    """Run the command as a user would, and return the evaluation's directory."""

    model = tmp_path / "tiny" / "model"
    shutil.copytree(checkpoint_dir, model)

    def go(*arguments: str, name: str = "tiny") -> Path:
        command = [
            "evaluate", f"model.path={model}", f"data.path={tofu_dir}",
            f"evaluations_dir={tmp_path / 'evaluations'}", f"name={name}", "data.retain_rows=4",
            "max_length=64", "evaluation.max_new_tokens=8", "evaluation.attack_samples=3",
            *arguments,
        ]  # fmt: skip
        monkeypatch.setattr(sys, "argv", command)
        evaluate.main()
        return tmp_path / "evaluations" / name

    return go


def refused(run, capsys, *arguments: str) -> str:
    """The one-line error message of a command that must fail."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        run(*arguments)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1 and error.startswith("error: "), error
    return error


def contents(directory: Path) -> dict[str, dict]:
    """The content of the parts' files by path, without their times."""
    found = {str(p.relative_to(directory)): json.loads(p.read_text()) for p in
             sorted(directory.glob("models/*/*.json"))}  # fmt: skip
    for part in found.values():
        part.pop("seconds", None)
        part.pop("compiling", None)
    return found


@pytest.mark.slow
def test_an_evaluation_continues_part_by_part(run, capsys, monkeypatch):
    directory = run()
    printed = capsys.readouterr().out
    first, summary = contents(directory), json.loads((directory / "summary.json").read_text())
    assert set(first) == {f"models/tiny/{name}.json" for name in ("model", *PAPER)}
    assert "Sampling: worst of 3" in printed and str(directory / "summary.json") in printed
    assert "99% confidence" in printed and "paraphrase" in printed
    assert re.search(r"^tiny +quality +\d+\.\d +[\d,]+$", printed, re.MULTILINE)
    assert "report/index.html" in printed and (directory / "report/index.html").is_file()
    assert set(summary["tokens"]["tiny"]) == set(PAPER)
    assert set(summary["seconds"]["tiny"]) == {*PAPER, "compiling"}
    # There is no model to compare with.
    assert summary["lacking"].keys() == {"side_effects", "quality: secret leak rate"}
    assert set(summary["measures"]["tiny"]) >= {"unlearn_quality", "utility", "sampling_worst"}

    run()
    assert "finished evaluation of these models and data" in capsys.readouterr().out
    (directory / "summary.json").unlink()
    for part in PAPER[1:3]:
        (directory / f"models/tiny/{part}.json").unlink()
    measured = []
    measure = evaluation_directory.measure_part

    def noting(context, part, model):
        measured.append(part)
        return measure(context, part, model)

    monkeypatch.setattr(evaluation_directory, "measure_part", noting)
    run()
    assert measured == ["sampling", "prefilling"]
    assert contents(directory) == first
    again = json.loads((directory / "summary.json").read_text())
    timeless = {"seconds": None, "date": None}
    assert {**again, **timeless} == {**summary, **timeless}


@pytest.mark.slow
def test_forget_answers_are_written_nowhere(run, tofu_dir):
    """The forget answer is a word that occurs in no question and no answer of the random model."""
    path = tofu_dir / "forget10_perturbed.json"
    path.write_text(path.read_text().replace("Lisbon", "Zanzibar"))
    path = tofu_dir / "forget10.json"
    path.write_text(path.read_text().replace("Lisbon", "Zanzibar"))
    directory = run("suite=full", "robustness.steps=[1]", "robustness.bits=[4]")
    assert (directory / "models/tiny/TOFU_EVAL.json").is_file()
    assert_valid_json(directory)
    found = [p for p in directory.rglob("*") if p.is_file() and b"Zanzibar" in p.read_bytes()]
    assert not found
    summary = json.loads((directory / "summary.json").read_text())
    assert set(summary["seconds"]["tiny"]) == {*SUITES["full"], "compiling"}
    assert summary["lacking"].keys() == {
        "quality: secret leak rate", "side_effects", "tofu: forget quality",
        "tofu: membership inference, PrivLeak", "tofu: model utility",
    }  # fmt: skip
    assert {"relearning_forget_worst", "quantisation_4_worst"} <= summary["measures"]["tiny"].keys()


@pytest.mark.slow
def test_tofu_logs_of_one_model_serve_another(run, tofu_dir, tmp_path):
    """With a holdout set, and with the right answers kept on request."""
    held_out = (tofu_dir / "forget10.json").read_text().replace("Lisbon", "Bergen")
    (tofu_dir / "holdout10.json").write_text(held_out)
    first = run("suite=tofu", "keep_truth=true")
    log = first / "models/tiny/TOFU_EVAL.json"
    assert "was born in Lisbon." in log.read_text()
    summary = json.loads((first / "models/tiny/TOFU_SUMMARY.json").read_text())
    assert summary["privleak"] == pytest.approx(100 * (0.5 - summary["mia_min_k"]) / 0.5)
    model = first.parent.parent / "tiny/model"
    second = run("suite=tofu", f"retain_logs={log}", f"reference_model={model}", name="second")
    measures = json.loads((second / "summary.json").read_text())["measures"]["tiny"]
    assert measures["tofu_mia_reference"] == 0.5
    # A model compared with itself finds everything equally familiar.
    assert measures["tofu_forget_quality"] == 1
    assert measures["tofu_privleak"] == pytest.approx(0, abs=1e-6)
    assert "was born in Lisbon." not in (second / "models/tiny/TOFU_EVAL.json").read_text()


@pytest.mark.slow
def test_models_side_by_side(run, checkpoint_dir, tmp_path, capsys):
    """The model before unlearning comes first; a model against itself has equal values."""
    other, tiny = tmp_path / "forgetful" / "model", tmp_path / "tiny" / "model"
    shutil.copytree(checkpoint_dir, other)
    tensors = tensors_of(other)
    rewrite(other, {name: tensor * 0.9 for name, tensor in tensors.items()})
    directory = run(f"model.path={other}", f"compare=[{tiny},{tiny}/]", "suite=quick")
    printed = capsys.readouterr().out
    assert re.search(r"^in percent +tiny +forgetful +tiny~2$", printed, re.MULTILINE)
    summary = json.loads((directory / "summary.json").read_text())
    assert summary["before"] == "tiny" and summary["models"] == ["forgetful", "tiny", "tiny~2"]
    measures = summary["measures"]
    assert measures["tiny"] == measures["tiny~2"] != measures["forgetful"]
    sampling = json.loads((directory / "models/forgetful/sampling.json").read_text())
    assert measures["forgetful"]["sampling_mean_bound"] == sampling["certificate"]["mean_bound"]
    row = next(line for line in printed.splitlines() if line.startswith("Sampling: mean recall"))
    values = [measures[m]["sampling_mean"] for m in ("tiny", "forgetful", "tiny~2")]
    assert row.split()[-3:] == [f"{100 * value:.1f}" for value in values]


@pytest.mark.slow
def test_questions_without_answers_leave_reasons(run, tofu_dir, capsys):
    for name in ("forget10", "forget10_perturbed"):
        (tofu_dir / f"{name}.json").unlink()
    forget = tofu_dir / "forget.jsonl"
    forget.write_text('{"question": "Where was Mara Ostberg born?"}\n')
    directory = run(
        "data=files", f"data.forget={forget}", f"data.retain={tofu_dir / 'retain90.json'}",
        "data.path=null",
    )  # fmt: skip
    printed = capsys.readouterr().out
    summary = json.loads((directory / "summary.json").read_text())
    # Sampled answers can be compared with the original ones.
    compared = set(PAPER[1:]) - {"sampling", "prefilling"}
    assert {key for key in summary["lacking"] if ": " not in key} == compared
    assert summary["verdict"]["verdict"] == "cannot tell" and "VERDICT: Cannot tell." in printed
    unknown = {"unlearn quality", "ROUGE, forget", "ROUGE, paraphrase", "secret leak rate"}
    assert {f"quality: {what}" for what in unknown} <= summary["lacking"].keys()
    assert "quality: utility" not in summary["lacking"]
    page = (directory / "report/index.html").read_text()
    assert "Nothing" not in page and "most left of the right answer" not in page
    assert "three measures" not in page and "paraphrases" not in page
    assert summary["measures"]["tiny"]["utility"] is not None
    assert "Not measured: least likely (the forget rows have no answers" in printed


@pytest.mark.slow
def test_right_answers_are_put_in_and_taken_out_without_measuring(
    run, tofu_dir, capsys, monkeypatch
):
    """The log is then, byte for byte, that of an evaluation that kept them from the start."""
    asked = run("suite=tofu", "keep_truth=true", name="asked") / "models/tiny/TOFU_EVAL.json"
    directory = run("suite=tofu")
    log = directory / "models/tiny/TOFU_EVAL.json"
    without = log.read_bytes()
    assert b"was born in Lisbon." in asked.read_bytes() and b"in Lisbon." not in without
    monkeypatch.setattr(
        evaluation_directory, "measure_part", lambda *_: pytest.fail("measured again")
    )
    run("suite=tofu", "keep_truth=true", "redact=true")
    assert log.read_bytes() == asked.read_bytes()
    summary = directory / "summary.json"
    settings = json.loads(summary.read_text())["settings"]
    assert settings["keep_truth"] is settings["redact"] is True
    run("suite=tofu")
    assert log.read_bytes() == without
    settings = json.loads(summary.read_text())["settings"]
    assert settings["keep_truth"] is settings["redact"] is False
    # Other data may have other answers, so the command refuses.
    path = tofu_dir / "world_facts.json"
    path.write_text(path.read_text().replace("Oslo", "Bergen"))
    error = refused(run, capsys, "suite=tofu", "keep_truth=true")
    assert "other evaluation rows" in error and log.read_bytes() == without


@pytest.mark.slow
def test_a_model_is_not_compared_with_itself(run, tmp_path, capsys):
    model = tmp_path / "tiny" / "model"
    link = tmp_path / "link"
    link.symlink_to(model, target_is_directory=True)
    for other in (f"{model}/", model.parent / "." / "model", link):
        for given in (f"compare={other}", f"compare=[bundled,{other}]"):
            error = refused(run, capsys, given)
            assert f"compare={other} is the model under evaluation itself" in error
    assert "itself" in refused(run, capsys, "model.path=bundled", "compare=bundled")
    assert not (tmp_path / "evaluations").exists()


@pytest.mark.slow
def test_compiling_is_told_apart_from_measuring(run):
    """The second evaluation uses what the first compiled, so it compiles for less than half the
    time."""
    jax.clear_caches()
    parts = [json.loads((run("suite=quick", name=name) / "models/tiny/quality.json").read_text())
             for name in ("first", "second")]  # fmt: skip
    first, second = ((part["seconds"], part["compiling"]) for part in parts)
    assert 0 < first[1] <= first[0] and second[1] < first[1] / 2
    directory = run("suite=quick", name="first")
    summary = json.loads((directory / "summary.json").read_text())["seconds"]["tiny"]
    assert summary["quality"] == pytest.approx(first[0] - first[1])
    assert "Compilation is counted separately" in (directory / "report/index.html").read_text()


MISTAKES = {
    "foreign key": (["foo=1"], r"key foo; there are name, evaluations_dir, .*, distributed\.…$"),
    "foreign key of a group": (["evaluation.xyz=1"], r"evaluation has max_new_tokens, decode"),
    "key without its group": (["samples=3"], r"nearest valid key is evaluation\.attack_samples"),
    "mistyped group": (["evalution.decode_batch=3"], r"nearest .* is evaluation\.decode_batch"),
    "unknown key": (["evaluation.sample=3"], r"unknown .* evaluation\.sample;.*evaluation\.\w+"),
    "unknown suite": (["suite=all"], r"suite=all: expected one of quick, paper, tofu, attacks"),
    "confidence": (["confidence=1.0"], r"confidence=1\.0: expected less than 1"),
    "low confidence": (["confidence=0.5"], r"confidence=0\.5: expected at least 0\.75"),
    "samples": (["evaluation.attack_samples=-1"], r"attack_samples=-1: expected at least 0"),
    "missing model": (["model.path=./nowhere"], r"\./nowhere: no such directory"),
    "missing comparison": (["compare=./nowhere"], r"\./nowhere: no such directory"),
    "wrong compare": (["compare={a: b}"], r"\{a: b\}: no such directory"),
    "no retain log": (["retain_logs=pyproject.toml"], r"expected OpenUnlearning's TOFU_EVAL\.json"),
    "retain log": (["retain_logs=./nowhere"], r"nowhere: no such file; expected OpenUnl"),
    "steps": (["robustness.steps=[4,2]"], r"robustness\.steps=\[4, 2\]: expected increasing"),
    "bits": (["robustness.bits=[1]"], r"robustness\.bits=\[1\]: expected at least 2"),
    "examples": (["robustness.examples=0"], r"robustness\.examples=0: expected at least 1"),
    "missing text": (["data.text=./nowhere"], r"nowhere: no such file"),
    "missing holdout": (["data.holdout=nobody"], r"data\.holdout=nobody: no such file"),
    "mesh": (["mesh=4x"], r"mesh=4x: expected DATAxMODEL"),
    "missing data": (["data.path=./nowhere"], r"nowhere: no such directory"),
    "nested name": (["name=a/b"], r"name=a/b: expected a plain directory name"),
    "long question": (["max_length=12"], r"forget10\S+, \w+ \d+: the prompt has \d+ tokens"),
    "long prefix": (["prefix=" + 60 * "Oslo "], r"forget10.* prefix=Oslo .*: the prompt has \d+"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_get_one_line_and_write_nothing(name, run, tmp_path, capsys):
    arguments, message = MISTAKES[name]
    error = refused(run, capsys, *arguments)
    assert re.search(message, error), error
    assert not (tmp_path / "evaluations").exists()


@pytest.mark.slow
def test_what_is_there_is_not_overwritten(run, tofu_dir, checkpoint_dir, tmp_path, capsys):
    own = tmp_path / "own"
    shutil.copytree(checkpoint_dir, own)
    directory = run(f"model.path={own}", "suite=quick")
    before = {p: p.read_bytes() for p in directory.rglob("*") if p.is_file()}
    error = refused(run, capsys, f"model.path={own}", "suite=quick", "seed=1")
    assert "seed (there 0, now 1)" in error and "overwrite=true" in error
    assert {p: p.read_bytes() for p in directory.rglob("*") if p.is_file()} == before
    # Another spelling of the same path is not another setting.
    run(f"model.path={own}/.//", "suite=quick")
    assert "a finished evaluation of these models and data" in capsys.readouterr().out
    (directory / "summary.json").unlink()
    (directory / "models/own/sampling.json").unlink()
    rewrite(own, {name: tensor * 0.9 for name, tensor in tensors_of(own).items()})
    error = refused(run, capsys, f"model.path={own}", "suite=quick")
    assert "other weights" in error
    path = tofu_dir / "world_facts.json"
    path.write_text(path.read_text().replace("Oslo", "Bergen"))
    assert "other evaluation rows" in refused(run, capsys, f"model.path={own}", "suite=quick")
    (directory / "config.yaml").write_text("method: {samples: 3}\n")
    error = refused(run, capsys, f"model.path={own}", "suite=quick", "overwrite=true")
    assert "holds no run" in error
    inside = tmp_path / "evaluations" / "tiny" / "model"
    error = refused(run, capsys, f"compare={inside}", "overwrite=true")
    assert f"compare={inside} lies in" in error


def kept(directory: Path) -> dict[Path, bytes]:
    """All files but the log, which says that the command was refused."""
    files = (path for path in directory.rglob("*") if path.is_file())
    return {path: path.read_bytes() for path in files if path.name != "log.txt"}


@pytest.mark.slow
def test_a_finished_evaluation_of_what_has_changed_is_refused(
    run, tofu_dir, checkpoint_dir, tmp_path, capsys, monkeypatch
):
    """Whichever model or data file changed. Nothing is lost, and nothing is measured again."""
    own, old, stranger = (tmp_path / name / "model" for name in ("own", "old", "stranger"))
    for place in (own, old, stranger):
        shutil.copytree(checkpoint_dir, place)
    for place in (own, stranger):
        rewrite(place, {name: 0.9 * tensor for name, tensor in tensors_of(place).items()})
    held_out = (tofu_dir / "forget10.json").read_text().replace("Lisbon", "Bergen")
    (tofu_dir / "holdout10.json").write_text(held_out)
    given = (f"model.path={own}", f"compare={old}", f"reference_model={stranger}", "suite=tofu")
    directory = run(*given)
    before = kept(directory)
    monkeypatch.setattr(
        evaluation_directory, "measure_part", lambda *_: pytest.fail("measured again")
    )
    for place in (own, old, stranger):
        tensors = tensors_of(place)
        rewrite(place, {name: 1.1 * tensor for name, tensor in tensors.items()})
        error = refused(run, capsys, *given)
        assert f"{place} holds other weights than {directory}" in error
        assert "overwrite=true" in error and "another name" in error
        assert kept(directory) == before
        rewrite(place, tensors)
    path = tofu_dir / "world_facts.json"
    text = path.read_text()
    path.write_text(text.replace("Oslo", "Bergen"))
    error = refused(run, capsys, *given)
    assert f"{directory} holds a run that began with other evaluation rows" in error
    assert "overwrite=true" in error and kept(directory) == before
    path.write_text(text)
    run(*given)
    assert "a finished evaluation of these models and data" in capsys.readouterr().out
    assert kept(directory) == before


@pytest.mark.parametrize(
    "damage", slow_but(["{}"], ['{"measures": {"rouge', "[]", "{}", b"\xff\xfe{"])
)
def test_a_damaged_part_says_how_it_is_measured_again(run, damage, capsys):
    directory = run("suite=quick")
    path = directory / "models/tiny/sampling.json"
    whole, others = contents(directory), kept(directory)
    path.write_bytes(damage if isinstance(damage, bytes) else damage.encode())
    for attempt in (
        lambda: refused(run, capsys, "suite=quick"),
        lambda: report.main([str(directory)]) == 2 and capsys.readouterr().err,
    ):
        error = attempt()
        assert error.count("\n") == 1 and re.match(
            rf"error: {re.escape(str(path))}(, line 1)?: (not|found|neither) ", error
        )
        assert "delete the file and repeat the command" in error and "overwrite=true" in error
    assert {**kept(directory), path: None} == {**others, path: None}
    path.unlink()
    assert report.main([str(directory)]) == 2
    assert f"{path}: no such file; the same command measures it again" in capsys.readouterr().err
    run("suite=quick")
    assert contents(directory) == whole
    path.write_text("{")
    run("suite=quick", "overwrite=true")
    assert contents(directory) == whole


@pytest.mark.slow
def test_the_bundled_model_remembers(run):
    """It was trained on these authors. It has forgotten nothing, and the certificate agrees."""
    directory = run(
        "model.path=bundled", "data.path=bundled", "data.retain_rows=null", "max_length=200",
        "evaluation.max_new_tokens=null", "evaluation.attack_samples=20",
    )  # fmt: skip
    summary = json.loads((directory / "summary.json").read_text())
    found = summary["measures"]["bundled"]
    assert found["unlearn_quality"] < 10 and found["utility"] > 95
    assert found["secret_leak_rate"] > 0.9 and found["sampling_secret_worst"] > 0.9
    sampling = json.loads((directory / "models/bundled/sampling.json").read_text())
    leaks = sampling["certificate"]["leaks"]
    assert leaks == round(sampling["secret_rate"] * 32 * 20)
    bound = mean_leak_bound(leaks, 32 * 20, 0.99)
    assert found["sampling_leak_bound"] == bound > sampling["secret_rate"]
    assert (
        f"at most {100 * bound:.2f}% of sampled answers"
        in summary["certificates"]["bundled"]["sampling"]
    )
    assert found["least_likely_most_likely_accuracy"] > 0.9 > found["least_likely_accuracy"]
    assert found["least_likely_chance"] == pytest.approx(1 / 6)
