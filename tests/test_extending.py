"""A method and a reward outside the package, end to end: the files of `docs/extending.md`."""

import html
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pmc_jax as pmc
from pmc_jax import train
from pmc_jax.training.run import prepare_inputs
from pmc_jax.unlearning.method import Run
from pmc_jax.unlearning.pmc import empty_memory
from pmc_jax.unlearning.pmc.sampling import scoring
from pmc_jax.unlearning.savings.pruning import pruning

ROOT = Path(__file__).parents[1]
FILE = ROOT / "examples" / "extending" / "my_unlearning.py"
REWARDS = """
from toy_package.my_unlearning import forgotten_names, most_forgotten_names


def without_bound(original, response):
    return forgotten_names(original, response)


def out_of_range(original, response):
    return 1.5


NUMBER = 3
"""
TRAINING = pmc.Training(epochs=2, batch_size=2, max_length=64)
OPTIMIZER = pmc.Optimizer(learning_rate=1e-3)

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(scope="module", autouse=True)
def toy(tmp_path_factory):
    """The example file as a module of an importable package, beside other rewards."""
    directory = tmp_path_factory.mktemp("outside")
    package = directory / "toy_package"
    package.mkdir()
    (package / "__init__.py").touch()
    shutil.copy(FILE, package)
    (package / "rewards.py").write_text(REWARDS)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(directory)
        import toy_package.my_unlearning as module

        yield module
    for name in [name for name in sys.modules if name.startswith("toy_package")]:
        del sys.modules[name]


@pytest.fixture
def command(checkpoint_dir, tofu_dir, tmp_path, monkeypatch):
    """Run `pmc train` on the tiny model; return the run's directory."""

    def call(*arguments: str) -> Path:
        monkeypatch.setattr(sys, "argv", [
            "train", f"model.path={checkpoint_dir}", "model.remat=none", "data=tofu_forget10",
            f"data.path={tofu_dir}", "training.epochs=2", "training.batch_size=2",
            "training.max_length=64", "optimizer.learning_rate=1e-3", "evaluation.max_new_tokens=4",
            "evaluation.attack_samples=1", f"runs_dir={tmp_path}", "name=run", *arguments,
        ])  # fmt: skip
        train.main()
        return tmp_path / "run"

    return call


def weights(model: pmc.LanguageModel) -> list[bytes]:
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(model.params)]


def page(directory: Path) -> str:
    """The text of a run's report."""
    source = (directory / "report" / "index.html").read_text(encoding="utf-8")
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", source)).split())


# --- the method ------------------------------------------------------------------------------
@pytest.mark.slow
def test_the_method_from_the_shell_and_from_python(toy, command, tiny_model, tofu_dir, tmp_path):
    directory = command("method=toy_package.my_unlearning:MaximumEntropy", "method.strength=0.5")
    assert toy.MaximumEntropy.sentence in page(directory)
    assert "strength: 0.5" in (directory / "config.yaml").read_text()
    data = pmc.Dataset.tofu(tofu_dir)
    method = toy.MaximumEntropy(strength=0.5)
    result = pmc.unlearn(tiny_model, data, method, TRAINING, OPTIMIZER)
    assert weights(result.model) == weights(pmc.load_model(directory / "model"))
    assert weights(result.model) != weights(tiny_model)


def test_the_method_does_what_it_says(toy, tiny_model, tofu_dir):
    """Answers to forget move towards the uniform distribution, whose loss is log V."""
    training = pmc.Training(epochs=40, batch_size=3, max_length=64)
    method = toy.MaximumEntropy(retain_weight=0.0)
    optimizer = pmc.Optimizer(learning_rate=3e-3)
    data = pmc.Dataset.tofu(tofu_dir)
    losses = [
        s.forget_loss for s in pmc.unlearn(tiny_model, data, method, training, optimizer).steps
    ]
    least = np.log(tiny_model.config.vocab_size)
    assert least < losses[-1] < least + (losses[0] - least) / 2


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("method=toy_package.my_unlearning:MaximumEntropi", "cannot be imported"),
        ("method=toy_package.my_unlearning:names_in", "is not a subclass of"),
        ("method.strength=0", "method.strength=0.0: expected more than 0"),
        ("method.strenght=1", "method.strength"),
    ],
)
def test_mistakes_end_in_one_line(argument, expected, command, capsys):
    method = "method=toy_package.my_unlearning:MaximumEntropy"
    with pytest.raises(SystemExit) as stop:
        command(*([argument] if argument.startswith("method=") else [method, argument]))
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1 and expected in error


def test_help_lists_the_settings_of_the_method(command, capsys):
    command("method=toy_package.my_unlearning:MaximumEntropy", "--help")
    printed = capsys.readouterr().out
    assert re.search(r"method\.strength=1(\.0)? +the weight of the forget loss", printed)
    assert "method.retain_weight" in printed and "method.samples" not in printed


# --- the reward ------------------------------------------------------------------------------
@pytest.mark.slow
def test_the_reward_from_the_shell_and_from_python(toy, command, tiny_model, tofu_dir):
    settings = ("method.samples=3", "method.max_new_tokens=8")
    directory = command("method.reward=toy_package.my_unlearning:forgotten_names", *settings)
    found = pmc.load_model(directory / "model")
    method = pmc.PMC(
        samples=3, max_new_tokens=8, min_len=4, retain_per_forget=2, reward=toy.forgotten_names
    )
    assert method.reward == "toy_package.my_unlearning:forgotten_names"
    data = pmc.Dataset.tofu(tofu_dir)
    result = pmc.unlearn(tiny_model, data, method, TRAINING, OPTIMIZER)
    assert weights(result.model) == weights(found)


def test_a_reward_counts_the_names_that_are_left_out(toy):
    original = "Mara Ostberg was born in Lisbon."
    assert toy.forgotten_names(original, original) == 0
    assert toy.forgotten_names(original, "'Lisbon' is a city.") == pytest.approx(2 / 3)
    assert toy.forgotten_names(original, "I cannot say.") == 1
    assert toy.forgotten_names("no names here", "Mara Ostberg") == 1


WORDS = st.lists(
    st.sampled_from(
        ["Mara", "Ostberg,", "'Lisbon'", "was", "born", "Li", "Lis", "I", "(Mara)", ""]
    ),
    max_size=8,
).map(" ".join)


@given(WORDS, WORDS, st.data())
def test_the_bound_is_never_below_the_reward(toy, original, response, draw):
    begun = response[: draw.draw(st.integers(0, len(response)))]
    assert toy.most_forgotten_names(original, begun) >= toy.forgotten_names(original, response)


def a_run(model: pmc.LanguageModel, reward: str, originals: list[str], **training) -> Run:
    """A PMC run on as many questions as `originals`, in its state before the first step."""
    data = pmc.Dataset.bundled()
    few = pmc.Dataset(data.forget[: len(originals)], data.retain[:4], data.evaluation)
    method = pmc.PMC(samples=8, max_new_tokens=24, reward=reward)
    settings = pmc.Training(batch_size=len(originals), max_length=64, **training)
    inputs = prepare_inputs(model, few, method, settings, seed=0)
    return Run(method, inputs.task, inputs.examples, {"originals": originals})


@pytest.fixture(scope="module")
def bundled() -> pmc.LanguageModel:
    return pmc.load_model("bundled")


@pytest.fixture(scope="module")
def originals(bundled) -> list[str]:
    questions = [row.question for row in pmc.Dataset.bundled().forget[:6]]
    return [answer for (answer,) in bundled.generate(questions, max_new_tokens=24)]


def test_pruning_is_off_without_a_bound(bundled):
    memory = empty_memory(1, 64)
    with_bound = a_run(bundled, "toy_package.my_unlearning:forgotten_names", [""])
    without = a_run(bundled, "toy_package.rewards:without_bound", [""])
    switched_off = a_run(bundled, with_bound.method.reward, [""], prune=False)
    runs = (with_bound, without, switched_off)
    found = [pruning(run.task.training, [0], scoring(run, memory)) for run in runs]
    assert [prune is not None for prune in found] == [True, False, False]


@pytest.mark.slow
def test_a_right_bound_changes_no_selected_response(bundled, originals):
    """The same reward with its bound selects the same responses and decodes fewer tokens."""
    found = {}
    for name in ("my_unlearning:forgotten_names", "rewards:without_bound"):
        run = a_run(bundled, f"toy_package.{name}", originals)
        state, chosen, tokens = empty_memory(len(originals), 64), [], 0
        for step in range(3):  # the second and third step have remembered responses
            one = run.method.step_examples(run, state, bundled.params, step, range(len(originals)))
            state = one.state
            chosen.append([example.answer for example in one.forget])
            tokens += one.measures["tokens_sampled"]
        found[name] = chosen, state.score.tolist(), tokens
    (pruned, scores, fewer), (plain, same_scores, all_tokens) = found.values()
    assert pruned == plain and scores == same_scores
    assert any(0 < score < 1 for score in scores) or len(set(scores)) > 1
    assert fewer < all_tokens


@pytest.mark.parametrize(
    ("reward", "expected"),
    [
        ("toy_package.rewards:out_of_range", "gave 1.5 for the response"),
        ("toy_package.rewards:NUMBER", "is not a function"),
        ("toy_package.rewards:absent", "cannot be imported"),
        ("rouge", "expected rouge_l or package.module:function"),
    ],
)
def test_a_wrong_reward_ends_in_one_line_that_names_it(
    reward, expected, command, tiny_model, tofu_dir, capsys
):
    with pytest.raises(SystemExit) as stop:
        command(f"method.reward={reward}", "method.samples=2", "method.max_new_tokens=8")
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1
    assert f"method.reward={reward}" in error and expected in error
    method = pmc.PMC(samples=2, max_new_tokens=8, reward=reward)
    with pytest.raises(pmc.UserError, match=re.escape(f"method.reward={reward}")):
        pmc.unlearn(tiny_model, pmc.Dataset.tofu(tofu_dir), method, TRAINING, OPTIMIZER)


# --- the page --------------------------------------------------------------------------------


def test_the_page_shows_the_code_of_the_file():
    code = FILE.read_text(encoding="utf-8")
    text = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    definitions = [block for block in blocks if re.search(r"^(def|class) ", block, re.MULTILINE)]
    assert len(definitions) == 2 and all(block in code for block in definitions)
    names = re.findall(r"^(?:def|class) (\w+)", code, re.MULTILINE)
    assert names and all(any(name in block for block in definitions) for name in names)


@pytest.mark.slow
def test_every_block_of_the_page_runs_by_itself(tiny_model, tofu_dir, monkeypatch):
    """In the directory of the example, with a smaller model and fewer questions."""
    text = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    monkeypatch.syspath_prepend(FILE.parent)
    monkeypatch.setattr(pmc, "load_model", {"bundled": tiny_model}.get)
    monkeypatch.setattr(pmc.Dataset, "bundled", lambda: pmc.Dataset.tofu(tofu_dir))
    results = []
    for block in blocks:
        names: dict[str, Any] = {"__name__": "block"}
        exec(compile(block, "extending.md", "exec"), names)
        results += [names["result"]] if "result" in names else []
    assert len(blocks) == 4 and len(results) == 2
    for result in results:
        assert len(result.steps) == 10 and weights(result.model) != weights(tiny_model)
