"""A retain model's log is compared only if it has the same rows; another prompt gives a warning."""

import dataclasses
import json

import pytest

from pmc_jax.data.prompt_config import PromptConfig
from pmc_jax.data.prompts import make_template
from pmc_jax.data.rows import EvaluationRow
from pmc_jax.errors import UserError
from pmc_jax.evaluation.tofu import RetainLog, check_retain_log, measured_on, read_retain_log

ROWS = [
    EvaluationRow(i, f"Do you know , who number {i} is? She'll not do that.", f"It's {i}.")
    for i in range(12)
]
HOLDOUT = 7


def log_of(rows, asked=None, stamp=None, holdout=HOLDOUT) -> dict:
    """A log as OpenUnlearning writes it; `asked` gives a row's `input`."""
    by_index = {str(row.id): {"score": 0.5 + row.id} for row in rows}
    side = {"agg_value": 0.5, "value_by_index": by_index}
    log = {
        "forget_truth_ratio": {"agg_value": 0.5, "value_by_index": by_index},
        "mia_min_k": {
            "forget": side, "agg_value": 0.4, "auc": 0.4,
            "holdout": {"agg_value": 1, "value_by_index": {str(i): 1 for i in range(holdout)}},
        },
    }  # fmt: skip
    if asked:
        texts = {str(row.id): {"input": asked(row), "generation": "x"} for row in rows}
        log["forget_Q_A_ROUGE"] = {"agg_value": 0.1, "value_by_index": texts}
    if stamp:
        log["forget_truth_ratio"]["measured_on"] = stamp
    return log


@pytest.fixture
def check(tmp_path, tokenizer):
    """Read a log from a file and check it against `ROWS`."""

    def go(log: dict, rows=ROWS) -> list[str]:
        path = tmp_path / "TOFU_EVAL.json"
        path.write_text(json.dumps(log))
        template = make_template(tokenizer, PromptConfig())
        return check_retain_log(read_retain_log(path), rows, HOLDOUT, template)

    return go


def decoded(tokenizer, text: str) -> str:
    """What OpenUnlearning logs: transformers' decoding with its clean-up of spaces."""
    ids = tokenizer(text).input_ids
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=True)


def test_logs_of_the_same_rows_are_accepted(check, tokenizer):
    template = make_template(tokenizer, PromptConfig())

    def prompt(row):
        return decoded(tokenizer, f"Question: {row.question}\nAnswer:")

    for asked in (None, lambda row: row.question, prompt):
        assert check(log_of(ROWS, asked)) == []
        assert check(log_of(ROWS[::-1], asked)) == []  # the numbers say which row is which
    assert check(log_of(ROWS, stamp=measured_on(ROWS, template))) == []


def test_logs_of_other_rows_are_refused(check, tokenizer):
    def message(log) -> str:
        with pytest.raises(UserError) as caught:
            check(log)
        text = str(caught.value)
        assert text.startswith("retain_logs: ") and "\n" not in text
        assert text.endswith("expected the log of a model that was measured on the same rows")
        return text

    assert "has truth ratios of 3 forget questions, but the data has 12;" in message(
        log_of(ROWS[:3])
    )
    later = [dataclasses.replace(row, id=row.id + 1) for row in ROWS]
    assert "has a row 12, but the data's 12 forget questions are numbered" in message(log_of(later))
    swapped = [dataclasses.replace(row, id=11 - row.id) for row in ROWS]
    assert "row 11 asks" in message(log_of(swapped, lambda row: row.question))
    assert "mia_min_k is of 12 and 9 forget and holdout answers, but the data has 12 and 7" in (
        message(log_of(ROWS, holdout=9))
    )
    template = make_template(tokenizer, PromptConfig())
    for changed in ({"answer": "Another."}, {"perturbed": ("No.",)}, {"system": "Hi."}):
        other = [dataclasses.replace(ROWS[0], **changed), *ROWS[1:]]
        stamp = measured_on(other, template)
        assert "was measured on other forget rows" in message(log_of(ROWS, stamp=stamp))


def test_another_prompt_is_told(check, tokenizer):
    expected = "retain_logs was measured with another prompt, so its numbers may not be comparable"
    other = make_template(tokenizer, PromptConfig(question="Q: {question}"))
    assert check(log_of(ROWS, stamp=measured_on(ROWS, other))) == [expected]
    assert check(log_of(ROWS, lambda row: f"user\n\n{row.question}assistant\n\n")) == [expected]


def test_numbers_alone_are_checked_by_their_count(tokenizer):
    template = make_template(tokenizer, PromptConfig())
    assert check_retain_log(RetainLog((0.5,) * 12, 0.5), ROWS, 0, template) == []
    with pytest.raises(UserError, match="of 2 forget questions, but the data has 12"):
        check_retain_log(RetainLog((0.5,) * 2, 0.5), ROWS, 0, template)
    assert check_retain_log(RetainLog((), 0.5), ROWS, 0, template) == []
