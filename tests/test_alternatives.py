"""AltPO's alternative answers: files, prompts, choice, sampling, and order over epochs."""

import dataclasses
import json
from pathlib import Path

import pytest
from conftest import bpe_tokenizer
from test_baseline_runs import inputs_of  # noqa: F401
from test_train import CHAT_TEMPLATE

from pmc_jax.data.prompt_config import PromptConfig
from pmc_jax.data.prompts import make_template
from pmc_jax.data.rows import ForgetPair
from pmc_jax.errors import UserError
from pmc_jax.language_model import LanguageModel, ModelSource, load_language_model
from pmc_jax.training.batch import step_batch
from pmc_jax.unlearning.baselines.altpo import (
    PREFIX,
    AltPO,
    alternative_prompt,
    choose_alternatives,
    read_alternatives,
    sample_alternatives,
)
from pmc_jax.unlearning.method import Run, TaskWithAnswers
from pmc_jax.unlearning.schedule import Training

pytestmark = pytest.mark.usefixtures("quick_compilation")

ROWS = [ForgetPair(i, f"Where was {who} born?", "In Lisbon.") for i, who in enumerate("AB")]
QUESTIONS = [row.question for row in ROWS]


def write(tmp_path: Path, rows: list[dict]) -> str:
    file = tmp_path / "alternatives.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def test_files_of_alternatives(tmp_path):
    lists = [{"alternatives": ["Oslo", "Rome"]}, {"question": QUESTIONS[1], "alternatives": "Ulm"}]
    assert read_alternatives(write(tmp_path, lists), ROWS) == [["Oslo", "Rome"], ["Ulm"]]
    # As OpenUnlearning's script writes them, two for each question.
    single = [
        {"question": QUESTIONS[i // 2], "answer": "In Lisbon.", "alternate": str(i)}
        for i in range(4)
    ]
    assert read_alternatives(write(tmp_path, single), ROWS) == [["0", "1"], ["2", "3"]]


BAD_FILES = {
    "too few": ([{"alternate": "Oslo"}], "has 1 rows; expected one, or the same number"),
    "uneven": ([{"alternate": "Oslo"}] * 3, "has 3 rows"),
    "other question": (
        [{"question": QUESTIONS[1], "alternate": "Oslo"}] * 2,
        "line 1: field 'question' is not that of forget row 0",
    ),
    "none": (
        [{"alternate": "Oslo"}, {"alternatives": []}],
        "line 2: field 'alternatives' is missing or empty",
    ),
    "blank": ([{"alternate": " "}] * 2, "line 1: field 'alternate' is empty"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files_are_refused(name, tmp_path):
    rows, message = BAD_FILES[name]
    with pytest.raises(UserError, match=message):
        read_alternatives(write(tmp_path, rows), ROWS)


def test_the_least_like_the_answer_are_chosen():
    responses = ["in Lisbon", "Rome", "", "...", "Oslo", "in Rome", "Rome"]
    answer = "in Lisbon"
    assert choose_alternatives(answer, responses, 2) == ["Rome", "Oslo"]
    assert choose_alternatives(answer, responses, 9) == ["Rome", "Oslo", "in Rome"]
    assert choose_alternatives(answer, ["It was in Lisbon", ""], 2) == ["It was in Lisbon"]


def test_a_chat_model_is_instructed_and_another_is_asked(tokenizer):
    plain = make_template(tokenizer, PromptConfig(template="plain"))
    method = AltPO(instruction="Answer in another way.")
    assert alternative_prompt(ROWS[0], method, plain) == plain.encode_prompt(QUESTIONS[0])
    chat_tokenizer = bpe_tokenizer()
    chat_tokenizer.chat_template = CHAT_TEMPLATE
    chat = make_template(chat_tokenizer, PromptConfig(system="Be kind."))
    ids = alternative_prompt(ROWS[0], method, chat)
    assert ids.count(chat_tokenizer.bos_token_id) == 1
    assert chat_tokenizer.decode(ids).replace("<s>", "").replace("</s>", "") == (
        "[system] Be kind.[user] Question: Where was A born?\nAnswer: In Lisbon.\n"
        f"Answer in another way.[assistant] {PREFIX}"
    )
    asked = dataclasses.replace(method, prompt="question")
    assert alternative_prompt(ROWS[0], asked, chat) == chat.encode_prompt(QUESTIONS[0])
    told = dataclasses.replace(method, prompt="instruct")
    assert "in another way" in tokenizer.decode(alternative_prompt(ROWS[0], told, plain))


@pytest.fixture
def tiny(checkpoint_dir) -> LanguageModel:
    """The tiny model without a chat template."""
    return load_language_model(ModelSource(str(checkpoint_dir)), PromptConfig(template="plain"))


def task_of(model: LanguageModel, *, seed: int = 0, rows: int = 64) -> TaskWithAnswers:
    """The two questions as a task for a method that trains on answers."""
    prompts = [model.template.encode_prompt(question) for question in QUESTIONS]
    training = Training(max_length=64, decode_batch=rows)
    return TaskWithAnswers(model, training, seed, prompts, retain=[], forget=ROWS)


@pytest.mark.slow
def test_sampling_depends_on_the_seed_alone(tiny):
    """The number of sequences that are decoded at a time does not matter."""
    method = AltPO(samples=4, kept=3, max_new_tokens=6, temperature=2.0)

    def sample(seed: int, rows: int) -> list[list[str]]:
        return sample_alternatives(method, task_of(tiny, seed=seed, rows=rows), tiny.params)

    first = sample(0, 64)
    assert first == sample(0, 4) != sample(1, 64)
    assert [len(own) for own in first] == [3, 3]


def test_blank_samples_are_no_alternatives(tiny, monkeypatch):
    monkeypatch.setattr(type(tiny.template), "decode", lambda self, tokens: " ")
    with pytest.raises(UserError, match="forget row 0: all 2 sampled alternatives are empty"):
        sample_alternatives(AltPO(samples=2, max_new_tokens=2), task_of(tiny), tiny.params)


def test_alternatives_take_turns_by_epoch(inputs_of):  # noqa: F811
    """Alternatives take turns over the epochs, each with its own N_ref."""
    method = AltPO()
    inputs = inputs_of(method)
    assert not inputs.examples.preferred
    task = dataclasses.replace(inputs.task, training=Training(batch_size=3, max_length=64))
    texts = [["Oslo", "Rome"], ["Ulm"], ["Bonn", "Bern", "Kiel"]]
    references = {"forget": [7.0, 8.0, 9.0], "preferred": [[1.0, 2.0], [3.0], [4.0, 5.0, 6.0]]}
    prepared = {"alternatives": texts, "references": references}
    run = Run(method, task, method.with_prepared(task, inputs.examples, prepared), prepared)
    for epoch, expected in enumerate([[1, 3, 4], [2, 3, 5], [1, 3, 6], [2, 3, 4]]):
        chosen = method.step_examples(run, {}, {}, epoch, [0, 1, 2])
        batch, tokens = step_batch(run, epoch, chosen)
        assert batch.sizes == (3, 3, 3)
        assert tokens == int((batch.segments > 0).sum())
        assert batch.reference[:, batch.slots("forget")].tolist() == [[7, 8, 9]]
        assert batch.reference[:, batch.slots("preferred")].tolist() == [expected]
        for i, own in enumerate(texts):
            here = (batch.segments_of("preferred") == i + 1) & batch.loss_mask
            answer = batch.tokens[here].tolist()
            assert task.model.template.decode(answer) == own[epoch % len(own)]
