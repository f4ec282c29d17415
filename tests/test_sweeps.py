"""Sweeps: equal budgets, valid values, and runs that fail or were stopped."""

import dataclasses
import itertools
import json
import sys
from types import SimpleNamespace

import hydra
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from test_train import call

from pmc_jax import api, train
from pmc_jax.cli.config import (
    Config,
    check_values,
    config_directory,
    settings_of_another,
)
from pmc_jax.cli.entry_point import entry_point
from pmc_jax.cli.finished import next_steps
from pmc_jax.data.rows import DataConfig, Fields
from pmc_jax.errors import UserError
from pmc_jax.runs.directory import SUMMARY
from pmc_jax.settings import flat
from pmc_jax.unlearning.method import methods

SWEEPS = sorted(path.stem for path in (config_directory() / "sweep").glob("*.yaml"))


def jobs(sweep: str) -> list[list[str]]:
    """The overrides of every run in a sweep."""
    content = OmegaConf.load(config_directory() / "sweep" / f"{sweep}.yaml")
    texts = [f"{key}={value}" for key, value in content.hydra.sweeper.params.items()]
    parsed = OverridesParser.create().parse_overrides(texts)
    choices = [
        [f"{o.key_or_group}={v}" for v in o.sweep_string_iterator()]
        if o.is_sweep_override()
        else [o.input_line]
        for o in parsed
    ]
    return [list(job) for job in itertools.product(*choices)]


def test_every_method_that_unlearns_has_a_sweep_of_the_same_budget():
    compared = [name for name in SWEEPS if not name.startswith("ablation_")]
    assert set(compared) == set(methods()) - {"finetune"} | {"pmc_keep_sampling"}
    assert {name: len(jobs(name)) for name in compared} == dict.fromkeys(compared, 16)
    assert {name.removeprefix("ablation_") for name in set(SWEEPS) - set(compared)} == {
        "epochs", "samples", "retain_weight", "temperature", "selection_temperature", "min_len",
        "final_temperature", "final_retain_weight", "keep_sampling",
    }  # fmt: skip


@pytest.mark.parametrize(
    "sweep", ["pmc", "ga", "npo", "satimp", "ablation_samples", "ablation_final_temperature"]
)
def test_the_runs_of_a_sweep_are_valid_and_have_names_of_their_own(sweep):
    names = []
    with hydra.initialize_config_dir(str(config_directory()), version_base="1.3"):
        for job in (jobs(sweep)[0], jobs(sweep)[-1]):
            config = OmegaConf.to_object(hydra.compose("train", [f"sweep={sweep}", *job]))
            check_values(config)
            names.append(config.name)
            assert config.method.name == ("pmc" if sweep.startswith("ablation_") else sweep)
            assert config.training.epochs == 14
    assert len(set(names)) == 2 and all("/" not in name for name in names)


@pytest.mark.slow
def test_a_failing_run_does_not_end_the_sweep(tmp_path, monkeypatch, capsys):
    seen = []

    def task(config):
        seen.append((config.name, config.seed))
        if config.seed == 0:
            raise UserError("loss is nan")

    monkeypatch.chdir(tmp_path)
    main = entry_point(task, "train", Config)
    monkeypatch.setattr("sys.argv", ["train", "-m", "sweep=ga"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2 and len(set(seen)) == 16
    assert "8 runs of the sweep failed" in capsys.readouterr().err


@pytest.mark.slow
def test_an_interrupted_sweep_continues(tmp_path, checkpoint_dir, tofu_dir, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments = [
        "-m", "sweep=retain_only", "experiment=tofu_llama3_2_3b", f"model.path={checkpoint_dir}",
        f"data.path={tofu_dir}", "prompt.template=plain", "prompt.system=null",
        "model.dtype=float32", "training.epochs=0", "training.max_length=64",
        "evaluation.max_new_tokens=4", "evaluation.attack_samples=0", "data.retain_rows=2",
        "optimizer.learning_rate=1e-4", "method.retain_weight=1,2", "seed=0",
    ]  # fmt: skip
    real = api.train_model
    calls = []

    def interrupted(*given, **options):
        calls.append(options["directory"])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*given, **options)

    monkeypatch.setattr(api, "train_model", interrupted)
    with pytest.raises(SystemExit):
        call(train, *arguments, monkeypatch=monkeypatch)
    summaries = sorted((tmp_path / "runs").rglob(SUMMARY))
    assert len(summaries) == 1
    first = summaries[0].read_bytes()
    call(train, *arguments, monkeypatch=monkeypatch)
    assert "is a finished run" in capsys.readouterr().out and len(calls) == 3
    assert summaries[0].read_bytes() == first
    found = [json.loads(path.read_text()) for path in (tmp_path / "runs").rglob(SUMMARY)]
    assert {row["settings"]["method.retain_weight"] for row in found} == {1.0, 2.0}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["experiment=own", "method=npo"],
         "the settings are those of PMC; method=npo has none of its own for experiment=own: "
         "optimizer.learning_rate=1e-05 and training.epochs=20"),
        (["experiment=own", "method=npo", "training.epochs=3"],
         "the settings are those of PMC; method=npo has none of its own for experiment=own: "
         "optimizer.learning_rate=1e-05"),
        (["experiment=own", "method=npo", "optimizer.learning_rate=1e-4"], None),
        (["experiment=own", "method=pmc"], None),
        (["experiment=demo", "method=rmu"], None),
    ],
)  # fmt: skip
def test_a_method_without_settings_of_its_own_is_named(arguments, expected):
    required = ["model.path=m", "data.forget=f", "data.retain=r"]
    with hydra.initialize_config_dir(str(config_directory()), version_base="1.3"):
        composed = hydra.compose("train", [*arguments, *required], return_hydra_config=True)
        choices = dict(composed.hydra.runtime.choices)
        del composed.hydra
        config = OmegaConf.to_object(composed)
    assert settings_of_another(config, choices, arguments, [config_directory()]) == expected


def test_every_experiment_has_settings_of_pmc():
    settings = config_directory() / "settings"
    for experiment in (config_directory() / "experiment").glob("*.yaml"):
        assert (settings / experiment.stem / "pmc.yaml").is_file(), experiment.stem


def test_a_run_says_at_its_start_that_its_settings_are_another_methods(
    tmp_path, monkeypatch, capsys
):
    seen = []

    def run_unlearning(*_, directory, untuned, **settings):
        directory.mkdir()
        seen.append(untuned)

    monkeypatch.setattr(train, "run_unlearning", run_unlearning)
    for name in ("load_dataset", "load_language_model", "mesh_of", "show"):
        monkeypatch.setattr(train, name, lambda *_, **__: SimpleNamespace(template="plain"))
    own = ["experiment=own", "model.path=m", "data.forget=f", "data.retain=r"]
    own += [f"runs_dir={tmp_path}", "method=npo"]
    call(train, *own, monkeypatch=monkeypatch)
    (note,) = seen
    assert note.startswith("the settings are those of PMC; method=npo has none of its own")
    assert f"note: {note}\n" in capsys.readouterr().out
    call(train, "-m", *own, "optimizer.learning_rate=1e-4,3e-4", "name=${optimizer.learning_rate}",
         monkeypatch=monkeypatch)  # fmt: skip
    assert seen[1:] == [None, None] and "note:" not in capsys.readouterr().out


def test_the_next_steps_of_a_run_are_commands_that_work(tmp_path, monkeypatch):
    """They name the run's own data, and hand on only what has forgotten."""
    (tmp_path / "report").mkdir()
    (tmp_path / "report/statement.html").touch()
    data = DataConfig("files", forget="f.csv", retain="r.csv", fields=Fields(question="frage"))
    settings = flat({"model": {"path": "m"}, "data": dataclasses.asdict(data)})
    for verdict in ("forgotten", "partly forgotten", "not forgotten"):
        summary = {"settings": settings, "verdict": {"verdict": verdict}}
        lines = next_steps(tmp_path, summary)
        (evaluation,) = (line for line in lines if "suite=full" in line)
        words = evaluation[evaluation.index("suite=full") :].split()
        assert {"data=files", "data.forget=f.csv", "data.fields.question=frage"} <= set(words)
        with hydra.initialize_config_dir(str(config_directory()), version_base="1.3"):
            composed = OmegaConf.to_object(hydra.compose("evaluate", words[1:]))
        assert composed.data == data
        assert any("hand on" in line for line in lines) == (verdict == "forgotten")
    for typed, form in (("pmc train", "pmc ask "), ("train.py", "python -m pmc_jax.ask ")):
        monkeypatch.setattr(sys, "argv", [typed])
        lines = next_steps(tmp_path, summary)
        assert any(line.strip().startswith(form) for line in lines)
