"""Alternative answers: files, prompts, choice, sampling, and turns."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import bpe_tokenizer
from pmc_jax.training.alternatives import (
    PREFIX,
    alternative_prompt,
    choose_alternatives,
    read_alternatives,
    sample_alternatives,
)
from pmc_jax.training.baseline import BaselineRun, method_batch
from pmc_jax.training.objectives import Frozen
from pmc_jax.training.targets import with_alternatives
from pmc_jax.unlearning.config import AltPOConfig
from test_baseline_runs import data_of  # noqa: F401
from test_train import CHAT_TEMPLATE

from convert.load import load_checkpoint
from pmc_jax.data.prompts import PromptConfig, make_template
from pmc_jax.data.rows import ForgetPair
from pmc_jax.errors import UserError
from pmc_jax.training.batch import BatchConfig

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
def test_files_that_are_none(name, tmp_path):
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
    method = AltPOConfig(instruction="Answer in another way.")
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


def test_sampling_depends_on_the_key_alone(checkpoint_dir, tokenizer):
    """Not on how many rows are decoded at a time."""
    found = load_checkpoint(checkpoint_dir)
    template = make_template(tokenizer, PromptConfig(template="plain"))
    prompts = [template.encode_prompt(question) for question in QUESTIONS]
    method = AltPOConfig(samples=4, kept=3, max_new_tokens=6, temperature=2.0)

    def sample(seed: int, rows: int) -> list[list[str]]:
        return sample_alternatives(
            found.params, ROWS, prompts, method=method, model=found.cfg, template=template,
            batch=BatchConfig(max_length=64, rows=rows), key=jax.random.key(seed),
        )  # fmt: skip

    first = sample(0, 64)
    assert first == sample(0, 4) != sample(1, 64)
    assert [len(own) for own in first] == [3, 3]


def test_blank_samples_are_no_alternatives(checkpoint_dir, tokenizer, monkeypatch):
    found = load_checkpoint(checkpoint_dir)
    template = make_template(tokenizer, PromptConfig(template="plain"))
    monkeypatch.setattr(type(template), "decode", lambda self, tokens: " ")
    with pytest.raises(UserError, match="forget row 0: all 2 sampled alternatives are empty"):
        sample_alternatives(
            found.params, ROWS, [[1, 2]] * 2, method=AltPOConfig(samples=2, max_new_tokens=2),
            model=found.cfg, template=template, batch=BatchConfig(), key=jax.random.key(0),
        )  # fmt: skip


def test_alternatives_take_turns_by_epoch(data_of, tokenizer):  # noqa: F811
    """Each with its own N_ref; a question's only alternative comes every time."""
    data, _, _ = data_of(AltPOConfig())
    assert not data.preferred
    template = make_template(tokenizer, PromptConfig(template="plain"))
    texts = [["Oslo", "Rome"], ["Ulm"], ["Bonn", "Bern", "Kiel"]]
    data = with_alternatives(data, texts, template, len(tokenizer))
    run = BaselineRun(
        method=AltPOConfig(), data=data, template=template,
        batch=BatchConfig(batch_size=3, max_length=64), seed=0, train_step=lambda *_: None,
        frozen=Frozen({}, jnp.zeros(0)),
        answer_reference=np.zeros(3, np.float32),
        preferred_reference=[np.float32([1, 2]), np.float32([3]), np.float32([4, 5, 6])],
    )  # fmt: skip
    for epoch, references in enumerate([[1, 3, 4], [2, 3, 5], [1, 3, 6], [2, 3, 4]]):
        batch, tokens = method_batch(run, epoch, [0, 1, 2])
        rows = batch.preferred
        counted = (batch.answers, batch.preferred, batch.retain)
        assert tokens == sum(int((part.segments > 0).sum()) for part in counted)
        assert rows.reference.tolist() == [references]
        for i, own in enumerate(texts):
            here = (rows.segments[0] == i + 1) & rows.loss_mask[0]
            answer = rows.tokens[0][here].tolist()
            assert template.decode(answer) == own[epoch % len(own)]
