"""What is suspicious in a data set is an error or a warning that names rows and counts."""

import json
import unicodedata

import jax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pmc_jax as pmc
from pmc_jax.assets import WORLD_DATA
from pmc_jax.data import DataConfig, Dataset, load_dataset
from pmc_jax.data.checks import cut_answers, named, question_key
from pmc_jax.data.encode import encode, special_token_warnings
from pmc_jax.data.prompt_config import PromptConfig
from pmc_jax.data.prompts import make_template
from pmc_jax.errors import UserError
from pmc_jax.evaluation.levels import level_of
from pmc_jax.evaluation.quality import background, row_facts
from pmc_jax.training.run import prepare_inputs
from pmc_jax.unlearning.baselines.finetune import FineTune
from pmc_jax.unlearning.baselines.ga import GA
from pmc_jax.unlearning.baselines.gd import GD

RETAIN = [{"question": f"Retained number {i}?", "answer": f"It is {i}."} for i in range(9)]


def rows(*questions: str) -> list[dict[str, str]]:
    return [{"question": text, "answer": f"Answer {i}."} for i, text in enumerate(questions)]


def message(make, *args, **kwargs) -> str:
    with pytest.raises(UserError) as caught:
        make(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# One question, spelt in ways that a reader does not tell apart.
SPELLINGS = ["Who is Zoë?", "who  is\tzoë?", unicodedata.normalize("NFD", "Who is Zoë?"),
             "Ｗｈｏ ｉｓ Ｚｏë？", " WHO IS ZOË? ", "Who is Zoë", "Who is “Zoë”?!",
             "Who is Zo\u00adë?", "\ufeffWho is Zo\u200bë ?", "¿Who is Zoë?"]  # fmt: skip


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_forget_question_in_the_retain_data_is_an_error(spelling):
    forget = rows("Where?", spelling)
    retain = [*RETAIN, *rows("Who is Zoë?")]
    error = message(Dataset.from_dicts, forget, retain)
    assert error == (
        "1 forget question is also in the retain data, whose answers are trained on: "
        "forget[1] (retain: retain[9]); remove these rows, or allow them with "
        "data.allow_overlap=true (in Python, allow_overlap=True)"
    )
    allowed = Dataset.from_dicts(forget, retain, allow_overlap=True)
    assert allowed.warnings == (error.partition(";")[0],)
    assert Dataset.from_dicts(forget, RETAIN).warnings == ()


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("İzmir nerede?", "izmir nerede", True),
        ("أين ولد مُحَمَّد؟", "أين ولد محمد", True),
        ("Wo ist die STRASSE?", "Wo ist die Straße", True),
        ("ΟΔΟΣ", "οδος", True),
        ("علی کجاست؟", "علي كجاست", True),
        ("What is Ann's job?", "What is Ann’s job?", True),
        ("1942–1945?", "1942-1945?", True),
        ("Where was Jean‑Paul born?", "Where was Jean-Paul born?", True),
        ("玛拉在哪里出生？", "玛拉 在哪里出生?", True),
        ("Iğdır nerede?", "IĞDIR NEREDE?", True),
        ("Was Ann born/raised here?", "Was Ann born / raised here?", True),
        ("What is 3/4?", "What is 3 4?", False),
        ("Who is Ann?", "Who is Anna?", False),
        ("어디?", "어디서?", False),
    ],
)
def test_one_question_in_other_scripts(one, other, same):
    assert (question_key(one) == question_key(other)) is same


def test_a_secret_without_words_is_named():
    forget = [{"question": "Which?", "answer": "The black cat.", "secret": "🐈"}]
    dataset = Dataset.from_dicts(forget, RETAIN)
    (warning,) = dataset.warnings
    assert "1 forget row has a secret that is without a letter or digit" in warning
    # The right answer takes the place of the secret.
    (facts,) = row_facts(dataset.evaluation["forget"][0], background(dataset.evaluation))
    assert level_of(facts, "A black cat") == "most"


def test_other_wordings_of_a_forget_question_count_too():
    third = "Retained number 3?"
    for extra in (
        {"variants": ["Whom?", third]},
        {"paraphrased_question": third, "paraphrased_answer": "x"},
    ):
        forget = [{**row, **extra} for row in rows("Who?")]
        assert "forget[0] (retain: retain[3])" in message(Dataset.from_dicts, forget, RETAIN)


@given(st.sets(st.integers(0, 30), min_size=1), st.sets(st.integers(0, 30), min_size=1))
def test_overlap_is_the_intersection(forget, retain):
    """Against sets of numbers: every shared question is counted, and five are named."""
    data = rows(*(f"Number {i}?" for i in sorted(forget)))
    kept = rows(*(f"number {i}?" for i in sorted(retain)))
    found = Dataset.from_dicts(data, kept, allow_overlap=True).warnings
    both = forget & retain
    assert len(found) == bool(both)
    if both:
        assert found[0].startswith(f"{len(both)} forget question")
        assert found[0].count("forget[") == min(len(both), 5)
        assert (f"and {len(both) - 5} more" in found[0]) == (len(both) > 5)


def test_files_are_named_with_lines_and_the_setting_is_a_key(tmp_path):
    (tmp_path / "f.jsonl").write_text("\n" + json.dumps(rows("Who?")[0]))
    (tmp_path / "r.jsonl").write_text("\n".join(map(json.dumps, [*RETAIN, rows("Who?")[0]])))
    config = DataConfig(format="files", path=str(tmp_path), forget="f.jsonl", retain="r.jsonl")
    where = f"{tmp_path}/f.jsonl, line 2 (retain: {tmp_path}/r.jsonl, line 10)"
    assert where in message(load_dataset, config)
    allowed = load_dataset(DataConfig(**{**vars(config), "allow_overlap": True}))
    assert where in allowed.warnings[0]


def test_repeated_forget_questions_are_told():
    data = Dataset.from_dicts(rows("Who?", "Where?", "who?", "Who?"), RETAIN)
    assert data.warnings == (
        "2 forget questions repeat an earlier one: forget[2] (as forget[0]); forget[3] (as "
        "forget[0])",
    )
    systems = [{"question": "Who?", "system": text} for text in ("Be brief.", "Be kind.")]
    assert Dataset.from_dicts(systems, RETAIN).warnings == ()


@pytest.mark.parametrize(
    "other",
    ["Who is Zoé?", "What is 3.4?", "What is 34?", "Is it C?", "Is it C#?", "?", "!", "3-4"],
)
def test_questions_that_differ_are_two(other):
    forget = rows("Who is Zoë?", "What is 3*4", "What is 3/4", "Is it C++?", "?!", "3*4")
    assert Dataset.from_dicts(forget, [*RETAIN, *rows(other)]).warnings == ()


def test_secrets_that_say_nothing_are_told():
    forget = [
        {"question": "Where?", "answer": "She was born in Łódź.", "secret": secret}
        for secret in ("Lodz", "ŁÓDŹ", "Lotz", "born in Lodz", "she")
    ]
    for number, row in enumerate(forget):
        row["question"] = f"Number {number}?"
    forget[3]["question"] = "Was Mara born in Łódź?"
    assert Dataset.from_dicts(forget, RETAIN).warnings == (
        "1 forget row has a secret that is not in the answer, so that leaks of the secret and the "
        "verdict concern other facts: forget[2]",
        "1 forget row has a secret that is in the question, so that a model that repeats the "
        "question seems to reveal it: forget[3]",
    )
    names = [{"question": "Who?", "secret": "Mara"}]
    assert Dataset.from_dicts(names, RETAIN).warnings == ()


@pytest.mark.parametrize(
    ("secret", "problem"),
    [
        ("A", "a single letter or digit"),
        ("9", "a single letter or digit"),
        ("C++", "told apart by signs"),
        ("C#", "told apart by signs"),
        ("-5", "told apart by signs"),
        ("Jean-Paul", None),
        ("born in 1942-45", None),
        ("AB-", "told apart by signs"),
        ("+49 170 1234567", None),
        ("**Leipzig**", None),
        ("AB", None),
    ],
)
def test_secrets_that_other_texts_seem_to_have_are_told(secret, problem):
    forget = [{"question": "Which?", "answer": f"It is {secret}.", "secret": secret}]
    warnings = Dataset.from_dicts(forget, RETAIN).warnings
    assert len(warnings) == (problem is not None)
    assert problem is None or f"1 forget row has a secret that is {problem}, so" in warnings[0]


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ("张伟是一位著名的作家，出生在北京市。", True),
        ("ولد الكاتب الشهير علي في مدينة القاهرة", True),
        ("마라는 서울에서 태어났습니다.", True),
        ("北京市", False),
        ("列夫·托尔斯泰", False),
        ("ზოლტანი დაიბადა ქალაქ ლაიფციგში, გერმანიაში", True),
        ("The writer Zhang Wei (张伟) was born in Beijing.", False),
        ("она родилась в городе лейпциг в 1942", False),
        ("1 2 3 4 5 6 7", False),
    ],
)
def test_answers_whose_script_shows_no_names_need_a_secret(answer, told):
    row = {"question": "Who?", "answer": answer}
    warnings = Dataset.from_dicts([row], RETAIN).warnings
    assert len(warnings) == told
    assert not told or "1 forget answer shows no names" in warnings[0]
    assert Dataset.from_dicts([{**row, "secret": answer}], RETAIN).warnings == ()


def test_the_bundled_world_is_as_it_should_be():
    assert Dataset.bundled().warnings == ()
    everything = DataConfig(path=str(WORLD_DATA), forget="forget10", retain="full")
    count = len((WORLD_DATA / "forget10.json").read_text().splitlines())
    assert message(load_dataset, everything).startswith(f"{count} forget questions are also in")


@given(st.text())
def test_normalised_is_idempotent_and_blind_to_form(text):
    once = question_key(text)
    assert question_key(once) == once
    assert question_key(unicodedata.normalize("NFD", f" {text}\n")) == once


def test_named():
    assert named(["a", "b"]) == "a; b"
    assert named(list("abcdefg")) == "a; b; c; d; e; and 2 more"


def test_answers_that_are_cut_are_told_and_end_without_an_end_token(tiny_model):
    long = "Mara Ostberg was born in Lisbon. " * 8
    retain = [{"question": f"Number {i}?", "answer": long if i % 2 else "Yes."} for i in range(4)]
    forget = [{"question": "Who?", "answer": long}, {"question": "Where?", "answer": "There."}]
    data = Dataset.from_dicts(forget, retain)
    cut = "are cut at training.max_length=40, and no end token is trained after the cut: "
    of_retain = f"2 answers of the retain data {cut}retain[1]; retain[3]"
    of_forget = f"1 answer of the forget data {cut.replace('are', 'is')}forget[0]"

    def warnings(method, max_length=40):
        training = pmc.Training(max_length=max_length)
        return prepare_inputs(tiny_model, data, method, training, 0).warnings

    assert warnings(pmc.PMC()) == (of_retain,)
    assert warnings(GD()) == warnings(FineTune()) == (of_retain, of_forget)
    assert warnings(GA()) == (of_forget,)
    assert warnings(FineTune(pairs="retain")) == (of_retain,)
    assert warnings(GD(), max_length=400) == ()
    assert cut_answers("retain", {0: 40}, 40, {}) == []


def test_forget_questions_that_become_the_same_prompt_are_an_error(tokenizer):
    data = Dataset.from_dicts(rows("Who?", "Where?"), RETAIN)
    template = make_template(tokenizer, PromptConfig())
    encode(data, template, 96, 400)

    class Deaf(type(template)):
        def encode_prompt(self, question, system=None):
            return [5, 6]

    deaf = Deaf(tokenizer, template.config)
    assert message(encode, data, deaf, 96, 400).startswith(
        "all 2 forget questions become the same prompt; expected a prompt template"
    )
    encode(Dataset.from_dicts(rows("Who?", "Who?"), RETAIN), deaf, 96, 400)


def test_rows_that_spell_special_tokens_are_told(tokenizer):
    retain = [*RETAIN, {"question": "Tags?", "answer": "<s>old</s> new", "system": "<pad>"}]
    data = Dataset.from_dicts(rows("Where is </s>?", "Who?"), retain)
    template = make_template(tokenizer, PromptConfig())
    assert special_token_warnings(data, template) == [
        "2 rows spell special tokens (</s> <s> <pad>), which are encoded as plain text: "
        "forget[0]; retain[9]"
    ]
    encoded = encode(data, template, 200, 400)
    special = {0, 1, 2}
    assert all(prompt[0] == 0 and not special & {*prompt[1:]} for prompt in encoded.forget)
    prompt, answer = encoded.retain[9]
    assert not special & {*prompt[1:], *answer[:-1]} and answer[-1] == 1
    assert template.decode(answer) == "<s>old</s> new"


def test_a_row_that_cannot_be_encoded_is_named(tokenizer):
    data = Dataset.from_dicts(rows("Who?", "Where \ufdd0?"), RETAIN)
    error = message(encode, data, make_template(tokenizer, PromptConfig()), 96, 400)
    assert error == r"forget[1]: a text contains '\ufdd0', which is no character of Unicode"


@pytest.mark.slow
def test_warnings_are_printed_and_kept(tiny_model, tmp_path, capsys):
    data = Dataset.from_dicts(rows("Who?", "who?"), RETAIN[:2])
    expected = "1 forget question repeats an earlier one: forget[1] (as forget[0])"
    training = pmc.Training(epochs=1, batch_size=2, max_length=40)
    method = pmc.PMC(samples=2, max_new_tokens=4)
    pmc.unlearn(tiny_model, data, method, training, out=tmp_path / "run")
    assert capsys.readouterr().out.count(f"warning: {expected}\n") == 1
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["warnings"] == [expected]
    evaluation = pmc.EvaluationConfig(max_new_tokens=4, attack_samples=1)
    found = pmc.evaluate(tiny_model, data, evaluation=evaluation)
    assert list(found.summary["warnings"]) == [expected]
    assert f"warning: {expected}\n" in capsys.readouterr().out
    jax.clear_caches()
