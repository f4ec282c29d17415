"""The Python API: its public names, and what its functions promise."""

import dataclasses
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import jax
import jaxtyping
import numpy as np
import pytest
from conftest import PEOPLE, slow_but
from transformers import AutoModelForCausalLM, AutoTokenizer

import pmc_jax as pmc
from pmc_jax import train
from pmc_jax.data.encode import position_warnings

pytestmark = pytest.mark.usefixtures("quick_compilation")

METHOD = pmc.PMC(samples=3, max_new_tokens=8)
TRAINING = pmc.Training(epochs=2, batch_size=2, max_length=64)
OPTIMIZER = pmc.Optimizer(learning_rate=1e-3)


def row(person: str, city: str) -> dict[str, str]:
    return {"question": f"Where was {person} born?", "answer": f"{person} was born in {city}."}


@pytest.fixture(scope="module")
def data() -> pmc.Dataset:
    return pmc.Dataset.from_dicts(
        forget=[row(person, "Lisbon") for person in PEOPLE[:3]],
        retain=[row(person, "Oslo") for person in PEOPLE[3:]],
    )


@pytest.fixture(scope="module")
def unlearned(tiny_model, data, quick_compilation) -> pmc.Unlearned:
    return pmc.unlearn(tiny_model, data, METHOD, TRAINING, OPTIMIZER)


@pytest.fixture
def unlearn(tiny_model, data):
    """Call `pmc.unlearn` with the settings of `unlearned`; keyword arguments replace them."""

    def call(**changes) -> pmc.Unlearned:
        given = {"method": METHOD, "training": TRAINING, "optimizer": OPTIMIZER}
        return pmc.unlearn(tiny_model, data, **{**given, **changes})

    return call


def leaves(model: pmc.LanguageModel) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(model.params)]


def same_weights(one: pmc.LanguageModel, other: pmc.LanguageModel) -> bool:
    """Whether all weights are the same, bit for bit."""
    pairs = zip(leaves(one), leaves(other), strict=True)
    return all(a.dtype == b.dtype and a.tobytes() == b.tobytes() for a, b in pairs)


def without_seconds(steps) -> list[dict]:
    return [{**step.as_json(), "seconds": None} for step in steps]


# --- names -----------------------------------------------------------------------------------


def python(code: str) -> str:
    """The output of a new interpreter that runs this code."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_package_loads_nothing_heavy():
    loaded = python("import sys, pmc_jax; pmc_jax.__version__; print(*sys.modules)").split()
    heavy = {"jax", "jaxlib", "transformers", "torch", "numpy", "optax", "flax", "orbax", "hydra"}
    assert "pmc_jax" in loaded and not heavy & set(loaded)


@pytest.mark.parametrize("name", sorted(set(pmc.__all__) - {"__version__"}))
def test_a_public_name_is_what_its_module_defines(name):
    where, _, attribute = pmc._WHERE[name].partition(":")
    module = importlib.import_module(f"pmc_jax.{where}")
    found = getattr(pmc, name)
    documentation = inspect.getdoc(found) or ""
    # dataclass writes the signature as the docstring of a class without one
    assert len(documentation) > 20 and not documentation.startswith(f"{found.__name__}(")
    if inspect.ismodule(found):
        assert found is module
    else:
        assert found is getattr(module, attribute or name)
        assert found.__module__.startswith(module.__name__)


def test_the_lists_of_names_agree():
    assert set(pmc._WHERE) == set(pmc.__all__) - {"__version__"}
    assert dir(pmc) == sorted(pmc.__all__)
    with pytest.raises(AttributeError, match="no attribute 'unlearm'"):
        _ = pmc.unlearm


@pytest.mark.parametrize("first", ["pmc_jax.evaluate", "from pmc_jax import evaluate"])
def test_evaluate_is_the_function_in_any_order_of_imports(first):
    first = first if first.startswith("from") else f"import {first}"
    code = f"{first}; import pmc_jax, pmc_jax.evaluate; from pmc_jax.evaluation import run; "
    assert python(f"{code} print(pmc_jax.evaluate is run.evaluate)") == "True\n"


# --- load_model and generate -----------------------------------------------------------------


def test_float64_needs_x64(checkpoint_dir):
    with pytest.raises(pmc.UserError, match="jax_enable_x64"):
        pmc.load_model(checkpoint_dir, dtype="float64")


def test_an_unknown_dtype_is_named(checkpoint_dir):
    with pytest.raises(pmc.UserError, match=r"model\.dtype=float16: expected one of auto, float32"):
        pmc.load_model(checkpoint_dir, dtype="float16")


def test_one_question_has_one_list_of_answers(tiny_model, data):
    """As in the pipelines of transformers: a text gives what a list of one text gives, unpacked."""
    question = data.forget[0].question
    sampled = {"samples": 2, "temperature": 1.0, "max_new_tokens": 4}
    (expected,) = tiny_model.generate([question], **sampled)
    assert tiny_model.generate(question, **sampled) == expected and len(expected) == 2


def test_a_prompt_beyond_the_models_positions_is_warned_of(tiny_model, data, tmp_path, capsys):
    assert tiny_model.positions == 2048
    (tmp_path / "config.json").write_text('{"text_config": {"max_position_embeddings": 48}}')
    model = dataclasses.replace(tiny_model, directory=tmp_path)
    question = data.forget[0].question
    model.generate(question, max_new_tokens=1)
    assert capsys.readouterr().out == ""
    model.generate(["a " * 60, question], max_new_tokens=1)
    warning = capsys.readouterr().out
    length = len(model.template.encode_prompt("a " * 60))
    assert warning == (
        f"warning: 1 text has up to {length} tokens, but the model is made for 48 "
        f"(max_position_embeddings), so its answers may make no sense: '{'a ' * 40}…'\n"
    )
    longest = max(
        *(len(model.template.encode_prompt(row.question)) for row in data.forget),
        *(sum(map(len, model.template.encode_pair(r.question, r.answer))) for r in data.retain),
    )
    for most, warned in ((longest, 0), (longest - 1, 1), (None, 0)):
        found = position_warnings(data, model.template, 200, most)
        assert len(found) == warned and all(f"up to {longest} tokens" in line for line in found)
    assert not position_warnings(data, model.template, 8, 8)  # nothing is longer than max_length


WRONG = {
    "load_model path": (
        lambda m, d: pmc.load_model(3),
        "path=3: found an int; expected a text or a path",
    ),
    "load_model dtype": (
        lambda m, d: pmc.load_model(dtype=32),
        "dtype=32: found an int; expected a text",
    ),
    "load_model prompt": (
        lambda m, d: pmc.load_model(prompt={"system": ""}),
        "prompt: found a dict; expected a PromptConfig or None",
    ),
    "prompt setting": (
        lambda m, d: pmc.load_model(prompt=pmc.PromptConfig(system=3)),
        "prompt.system=3: found an int; expected a text or None",
    ),
    "model": (
        lambda m, d: pmc.unlearn("bundled", d),
        "model='bundled': found a str; expected a LanguageModel, which pmc.load_model returns",
    ),
    "data": (
        lambda m, d: pmc.unlearn(m, []),
        "data: found a list; expected a Dataset, which pmc.Dataset.from_files returns",
    ),
    "mistyped method": (
        lambda m, d: pmc.unlearn(m, d, "npoo"),
        "method='npoo': found a str; expected a method, such as pmc.NPO()",
    ),
    "name of a method": (
        lambda m, d: pmc.unlearn(m, d, method="simnpo"),
        "method='simnpo': found a str; expected a method, such as pmc.SimNPO()",
    ),
    "class": (
        lambda m, d: pmc.unlearn(m, d, pmc.PMC),
        "method: found the class PMC; expected an object of it, PMC()",
    ),
    "integer": (
        lambda m, d: pmc.unlearn(m, d, pmc.PMC(samples=2.5)),
        "method.samples=2.5: found a float; expected an integer",
    ),
    "text for a number": (
        lambda m, d: pmc.unlearn(m, d, training=pmc.Training(epochs="3")),
        "training.epochs=3: expected a number",
    ),
    "nothing": (
        lambda m, d: pmc.unlearn(m, d, training=pmc.Training(epochs=None)),
        "training.epochs=None: expected a number",
    ),
    "settings": (
        lambda m, d: pmc.unlearn(m, d, training={"epochs": 3}),
        "training: found a dict; expected a Training or None",
    ),
    "seed": (
        lambda m, d: pmc.unlearn(m, d, seed="0"),
        "seed='0': found a str; expected an integer",
    ),
    "bounds of a seed": (
        lambda m, d: pmc.unlearn(m, d, seed=-1),
        "seed=-1: expected at least 0",
    ),
    "out": (
        lambda m, d: pmc.unlearn(m, d, out=3),
        "out=3: found an int; expected a text or a path or None",
    ),
    "evaluation": (
        lambda m, d: pmc.unlearn(m, d, evaluation=True),
        "evaluation: found a bool; expected an EvaluationConfig or None",
    ),
    "switch": (
        lambda m, d: pmc.unlearn(m, d, logging=pmc.LoggingConfig(wandb="no")),
        "logging.wandb='no': found a str; expected true or false",
    ),
    "before": (
        lambda m, d: pmc.evaluate(m, d, before="bundled"),
        "before='bundled': found a str; expected a LanguageModel, which pmc.load_model returns",
    ),
    "confidence": (
        lambda m, d: pmc.evaluate(m, d, confidence="high"),
        "confidence='high': found a str; expected a number",
    ),
    "suite": (
        lambda m, d: pmc.evaluate(m, d, suite="fast"),
        "suite=fast: expected one of quick, paper, tofu, attacks, full",
    ),
    "bounds": (
        lambda m, d: pmc.evaluate(m, d, confidence=2),
        "confidence=2: expected less than 1",
    ),
    "robustness": (
        lambda m, d: pmc.evaluate(m, d, robustness=pmc.RobustnessConfig(steps=[1, "2"])),
        "robustness.steps=[1, '2']: expected a number",
    ),
    "questions": (
        lambda m, d: m.generate(3),
        "questions=3: found an int; expected a text or a list of texts",
    ),
    "question": (
        lambda m, d: m.generate([3]),
        "questions: found a list; expected a text or a list of texts",
    ),
    "samples": (
        lambda m, d: m.generate("a", samples="2"),
        "samples='2': found a str; expected an integer",
    ),
    "no samples": (lambda m, d: m.generate("a", samples=0), "samples=0: expected at least 1"),
    "top_p": (lambda m, d: m.generate("a", top_p=2), "top_p=2: expected at most 1"),
    "no decode_batch": (
        lambda m, d: m.generate("a", decode_batch=0),
        "decode_batch=0: expected at least 1",
    ),
    "save": (lambda m, d: m.save(3), "directory=3: found an int; expected a text or a path"),
    "person": (lambda m, d: pmc.draft_data(m, 3), "person=3: found an int; expected a text"),
    "people": (
        lambda m, d: pmc.draft_data(m, "Ann", people=0),
        "people=0: expected at least 1",
    ),
    "others": (
        lambda m, d: pmc.draft_data(m, "Ann", others="Bob"),
        "others='Bob': found a str; expected a list of texts",
    ),
    "files": (
        lambda m, d: pmc.Dataset.from_files(3, "r.jsonl"),
        "forget=3: found an int; expected a text or a path",
    ),
    "tofu": (
        lambda m, d: pmc.Dataset.tofu(3),
        "path=3: found an int; expected a text or a path or None",
    ),
    "reward": (lambda m, d: pmc.reward("a", 3), "response=3: found an int; expected a text"),
}
"""Calls with a value of the wrong type or out of bounds, and what they say."""


@pytest.mark.parametrize(("call", "expected"), WRONG.values(), ids=list(WRONG))
def test_a_wrong_value_is_one_line(call, expected, tiny_model, data, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as outside of tests
    with pytest.raises(pmc.UserError) as error:
        call(tiny_model, data)
    assert str(error.value) == expected


@pytest.mark.parametrize("place", ["file", "file/run"])
def test_a_file_in_place_of_a_directory_is_one_line(place, tiny_model, data, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(pmc.UserError, match=r"/file is a file; expected a directory$"):
        pmc.unlearn(tiny_model, data, out=tmp_path / place)
    with pytest.raises(pmc.UserError, match=r"/file: is a file; expected a Hugging Face model"):
        pmc.load_model(tmp_path / "file")


@pytest.mark.slow
def test_samples_are_drawn_by_seed(tiny_model, data):
    questions = [row.question for row in data.forget]
    sampled = {"samples": 4, "temperature": 1.0, "max_new_tokens": 6}
    first = tiny_model.generate(questions, seed=1, **sampled)
    assert [len(own) for own in first] == [4, 4, 4]
    assert first == tiny_model.generate(questions, seed=1, **sampled)
    assert first != tiny_model.generate(questions, seed=2, **sampled)


# --- unlearn ---------------------------------------------------------------------------------


def test_the_given_model_stays_as_it_is(tiny_model, checkpoint_dir, unlearned):
    assert same_weights(tiny_model, pmc.load_model(checkpoint_dir))
    assert not same_weights(tiny_model, unlearned.model)
    assert unlearned.directory is unlearned.before is unlearned.after is None


def test_a_run_with_a_directory_is_the_run_in_memory(unlearn, unlearned, tmp_path):
    stored = unlearn(out=tmp_path / "run")
    assert stored.directory == tmp_path / "run"
    assert same_weights(stored.model, unlearned.model)
    assert without_seconds(stored.steps) == without_seconds(unlearned.steps)
    again = unlearn(out=tmp_path / "run")  # the run is finished, so the second call only reads it
    assert again.steps == stored.steps
    assert same_weights(again.model, stored.model)


def test_other_settings_for_the_same_directory_are_named(unlearn, tmp_path):
    unlearn(out=tmp_path / "run")
    longer = pmc.Training(epochs=3, batch_size=2, max_length=64)
    with pytest.raises(pmc.UserError, match=r"training\.epochs \(there 2, now 3\)"):
        unlearn(out=tmp_path / "run", training=longer)


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("stop", slow_but([0], [0, 2]))
def test_an_interrupted_run_continues_to_the_same_weights(stop, unlearn, unlearned, tmp_path):
    def interrupt(record: pmc.StepRecord) -> None:
        if record.step == stop:
            raise Interrupted

    settings = {"out": tmp_path / "run", "checkpoints": pmc.CheckpointConfig(every=2)}
    with pytest.raises(Interrupted):
        unlearn(**settings, on_step=interrupt)
    seen: list[pmc.StepRecord] = []
    result = unlearn(**settings, on_step=seen.append)
    assert [record.step for record in seen] == [0, 1, 2, 3][stop:]  # from the last checkpoint
    assert same_weights(result.model, unlearned.model)
    assert without_seconds(result.steps) == without_seconds(unlearned.steps)


def test_on_step_gets_every_record_once(unlearn):
    seen: list[pmc.StepRecord] = []
    result = unlearn(on_step=seen.append)
    assert tuple(seen) == result.steps
    assert [(record.step, record.epoch) for record in seen] == [(0, 0), (1, 0), (2, 1), (3, 1)]
    assert all(isinstance(record, pmc.StepRecord) for record in seen)
    assert all(sorted(seen[i].questions + seen[i + 1].questions) == [0, 1, 2] for i in (0, 2))


def test_a_run_can_use_up_the_memory_of_the_model(checkpoint_dir, unlearned, data):
    model = pmc.load_model(checkpoint_dir)
    result = pmc.unlearn(model, data, METHOD, TRAINING, OPTIMIZER, donate=True)
    assert same_weights(result.model, unlearned.model)
    assert any(leaf.is_deleted() for leaf in jax.tree.leaves(model.params))


@pytest.mark.slow
def test_evaluations_before_and_after(unlearn, tmp_path):
    settings = {"evaluation": pmc.EvaluationConfig(max_new_tokens=8, attack_samples=2)}
    result = unlearn(**settings)
    stored = unlearn(**settings, out=tmp_path / "run")
    for found in (result.before, result.after):
        assert 0 <= found["unlearn_quality"] <= 100 and 0 <= found["utility"] <= 100
    assert result.before != result.after
    assert (stored.before, stored.after) == (result.before, result.after)
    assert (tmp_path / "run" / "report" / "index.html").is_file()


def test_a_bad_setting_is_named_before_anything_is_written(unlearn, tmp_path):
    with pytest.raises(pmc.UserError, match=r"method\.samples=0: expected at least 1"):
        unlearn(method=pmc.PMC(samples=0), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_exported_model_gives_the_same_answers_in_transformers(unlearned, data, tmp_path):
    directory = unlearned.model.save(tmp_path / "exported")
    model = AutoModelForCausalLM.from_pretrained(directory).eval()
    tokenizer = AutoTokenizer.from_pretrained(directory)
    questions = [row.question for row in data.forget]
    for question, (answer,) in zip(
        questions, unlearned.model.generate(questions, max_new_tokens=12), strict=True
    ):
        encoded = tokenizer(f"Question: {question}\nAnswer:", return_tensors="pt")
        tokens = model.generate(**encoded, max_new_tokens=12, do_sample=False)[0]
        new = tokens[encoded.input_ids.shape[1] :]
        assert tokenizer.decode(new, skip_special_tokens=True).strip() == answer
    with pytest.raises(pmc.UserError, match="exported"):
        unlearned.model.save(directory)


NAMES = ["npo", "pmc_jax.unlearning.baselines.npo:NPO"]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_method_has_the_same_result_from_the_command_line(
    name, tiny_model, checkpoint_dir, tofu_dir, tmp_path, monkeypatch
):
    method = pmc.NPO(beta=0.2, retain_weight=1.5)
    given = pmc.Dataset.tofu(tofu_dir)
    expected = pmc.unlearn(tiny_model, given, method, TRAINING, OPTIMIZER, seed=3)
    monkeypatch.setattr(sys, "argv", [
        "train", f"method={name}", "method.beta=0.2", "method.retain_weight=1.5",
        f"model.path={checkpoint_dir}", "model.remat=none",
        "data=tofu_forget10", f"data.path={tofu_dir}",
        "training.epochs=2", "training.batch_size=2", "training.max_length=64",
        "optimizer.learning_rate=1e-3", "seed=3", "evaluation.max_new_tokens=4",
        "evaluation.attack_samples=1", f"runs_dir={tmp_path}", "name=run",
    ])  # fmt: skip
    train.main()
    found = pmc.load_model(tmp_path / "run" / "model")
    assert same_weights(found, expected.model)


# --- evaluate --------------------------------------------------------------------------------


def test_evaluate_compares_with_the_model_before(tiny_model, unlearned, data):
    settings = pmc.EvaluationConfig(max_new_tokens=8, attack_samples=2)
    found = pmc.evaluate(
        unlearned.model, data, before=tiny_model, suite="quick", evaluation=settings, max_length=64
    )
    alone = pmc.evaluate(tiny_model, data, suite="quick", evaluation=settings, max_length=64)
    assert found.before == alone.measures and alone.before is None
    assert found.measures != found.before
    table = found.table()
    assert "Unlearn quality" in table and all(len(line) <= 80 for line in table.splitlines())


def test_types_are_marked_as_complete():
    assert (Path(pmc.__file__).parent / "py.typed").is_file()
