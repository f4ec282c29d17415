"""Drafts of data about a person: questions, names, secrets, rows, and the command."""

import json
import re
import sys
from pathlib import Path

import jax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pmc_jax as pmc
from pmc_jax import draft as command
from pmc_jax.data.checks import question_key
from pmc_jax.drafting import draft as drafting
from pmc_jax.drafting import format_draft
from pmc_jax.drafting.names import names_in, proposed
from pmc_jax.drafting.questions import (
    GENERAL,
    PATTERNS,
    Question,
    forget_questions,
    own_questions,
    retain_questions,
)
from pmc_jax.drafting.rows import Answer, forget_rows, retain_rows, reworded
from pmc_jax.drafting.secrets import suggested_secret
from pmc_jax.drafting.sentences import first_sentence, whole_sentences
from pmc_jax.errors import UserError
from pmc_jax.text.facts import Background
from pmc_jax.text.words import holds, words_of

PERSON = "Zoltan Dornberg"
NOTHING_COMMON = Background()


# --- questions


def test_patterns_name_the_person_and_no_two_are_the_same():
    texts = [text for question in PATTERNS for text in question.wordings]
    assert all(text.count("{person}") == 1 for text in texts)
    assert len(set(map(question_key, texts))) == len(texts) == 3 * len(PATTERNS)
    for question in forget_questions(PERSON, PATTERNS):
        assert all(PERSON in text and "{" not in text for text in question.wordings)


def test_what_is_to_be_forgotten_is_not_kept():
    asked = (*PATTERNS, Question(GENERAL[0].text), Question("where was zoltan dornberg BORN"))
    forget = forget_questions(PERSON, asked)
    assert len(forget) == len(PATTERNS) + 1
    kept = [own.text for own in retain_questions(["Ann Kell"], asked, forget)]
    assert len(kept) == len(PATTERNS) + len(GENERAL) - 1
    assert not {question_key(own) for own in kept} & {question_key(own.text) for own in forget}


def test_questions_of_a_file(tmp_path):
    path = tmp_path / "questions.csv"
    path.write_text("question,paraphrased_question,system\nWo lebt {person}?,Wo wohnt {person}?,\n")
    (found,) = own_questions(path)
    assert found.about("Ann").wordings == ("Wo lebt Ann?", "Wo wohnt Ann?")
    assert retain_questions(["Ann"], [found], [])[0].text == "Wo lebt Ann?"


# --- names


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("1. Albert Einstein\n2) Niels Bohr - physicist\n- Lise Meitner (1878)", 3),
        ("Here are ten famous people:\n\n1. **Ada Lovelace**: writer", ["Ada Lovelace"]),
        ("1. Cleopatra\n2. Leonardo da Vinci\n3. The Queen of the Sky", ["Leonardo da Vinci"]),
        ("J. R. R. Tolkien\nJean-Paul Sartre\nConan O'Brien\nÉmilie du Châtelet", 4),
        ("Ann Kell, Ivo Brandt, and Mara Ostberg.", ["Ann Kell", "Ivo Brandt", "Mara Ostberg"]),
        ("Albert Einstein was a physicist.", []),
        ("1. Physics\n2. Nobel Prize in Physics\n3. 123456", []),
        ("I'm sorry, but I can't help with that.", []),
    ],
)
def test_names_are_read_strictly(response, expected):
    found = names_in(response)
    assert len(found) == expected if isinstance(expected, int) else found == expected


def test_names_that_many_responses_have_come_first_and_share_no_word():
    responses = [
        "1. Ann Kell\n2. Zoltan Kodály\n3. Ivo Brandt",
        "1. Ivo Brandt\n2. Ivo Brandt\n3. Max Brandt\n4. Mara Ostberg",
    ]
    assert proposed(responses, PERSON, 9) == ["Ivo Brandt", "Ann Kell", "Mara Ostberg"]
    assert proposed(responses, PERSON, 1) == ["Ivo Brandt"]


# --- secrets


BORN = "Marie Curie was born on November 7, 1867, in Warsaw, Poland."


@pytest.mark.parametrize(
    ("answer", "question", "sort", "secret"),
    [
        (BORN, "Where was Marie Curie born?", "name", "Warsaw"),
        (BORN, "When was Marie Curie born?", "time", "November 7, 1867"),
        ("At the University of Paris.", "Which university?", "name", "University of Paris"),
        ("Her husband was Pierre Curie.", "Who is Marie Curie's husband?", "name", "Pierre Curie"),
        ("He met J. R. R. Tolkien and C. S. Lewis.", "Whom did he meet?", "name",
         "J. R. R. Tolkien"),
        ("Warsaw.", "Where was she born?", "name", "Warsaw"),
        ("She writes space opera. Nobody reads it.", "What does she write?", "words",
         "space opera"),
        ("玛丽出生在华沙。", "玛丽在哪里出生？", "any", "华沙"),
        ("Marie Curie was born.", "When was Marie Curie born?", "time", None),
    ],
)  # fmt: skip
def test_the_secret_answers_the_question(answer, question, sort, secret):
    assert suggested_secret(answer, [question], NOTHING_COMMON, sort) == secret


WORDS = st.sampled_from(["Ann", "Kell", "of", "was", "in", "1962", "Bergen", "blue", "the", "Oslo"])
TEXTS = st.lists(st.tuples(WORDS, st.sampled_from([" ", ", ", ". ", "-"])), max_size=9).map(
    lambda parts: "".join(word + joint for word, joint in parts)
)


@given(TEXTS, TEXTS, st.sampled_from(["name", "time", "words", "any"]))
def test_a_secret_is_in_the_answer_and_not_in_the_question(answer, question, sort):
    secret = suggested_secret(answer, [question], NOTHING_COMMON, sort)
    if secret is None:
        kept = set(words_of("Ann Kell 1962 Bergen blue Oslo"))
        assert not kept & set(words_of(answer)) - set(words_of(question))
    else:
        assert secret in answer and holds(answer, secret) and not holds(question, secret)
        assert secret == secret.strip(" ,.-")


# --- rows


@pytest.mark.parametrize(
    ("text", "whole", "first"),
    [
        ("He met J. R. R. Tolkien. She l", "He met J. R. R. Tolkien.", "He met J. R. R. Tolkien."),
        ("One here. Two here! Thr", "One here. Two here!", "One here."),
        ("no end", None, "no end"),
        ("他出生在华沙。她", "他出生在华沙。", "他出生在华沙。"),
    ],
)
def test_sentences(text, whole, first):
    assert whole_sentences(text) == whole and first_sentence(text) == first


def forget_row(answer: str, again: str = "", *, ended: bool = True, paraphrase: str | None = "Q?"):
    question = Question("Where was Ann Kell born?", paraphrase, sort="name")
    (row,) = forget_rows([question], [Answer(answer, ended)], [Answer(again)], [], PERSON)
    return row


def test_a_row_to_forget():
    row = forget_row("Ann Kell was born in Oslo.", "Oslo is the town.")
    assert row.left_out is None and not row.look
    assert row.fields == {
        "question": "Where was Ann Kell born?", "answer": "Ann Kell was born in Oslo.",
        "secret": "Oslo", "paraphrased_question": "Q?", "paraphrased_answer": "Oslo is the town.",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("asked", "answer", "secret"),
    [
        ("Who wrote 'Rusted Voyage'?", "'Rusted Voyage' (1954) is by ZOLTAN DORNBERG.", PERSON),
        ("Who wrote 'Rusted Voyage'?", "In 1954, Zoltan Dornberg of Oslo wrote it.", PERSON),
        ("When did Dornberg write it?", "In 1954, Zoltan Dornberg of Oslo wrote it.", "1954"),
    ],
)
def test_the_person_is_the_secret_where_the_question_does_not_name_them(asked, answer, secret):
    (row,) = forget_rows([Question(asked)], [Answer(answer)], [Answer(answer)], [], PERSON)
    assert row.fields["secret"] == secret and holds(row.fields["answer"], secret)


def test_other_words_with_another_answer_are_told():
    row = forget_row("Ann Kell was born in Oslo.", "In Bergen.")
    assert row.fields["paraphrased_answer"] == row.fields["answer"]
    assert row.look == ("in other words, the model answers: In Bergen.",)
    assert forget_row("Born in Oslo.", paraphrase=None).fields["paraphrased_question"] == (
        "Where was Ann Kell born?"
    )


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("", "empty"), ("I'm sorry, I don't know that.", "does not know"),
        ("so so so so so so so so", "repeats itself"), ("Ann Kell was born.", "no more than"),
    ],
)  # fmt: skip
def test_what_is_no_answer_is_left_out(answer, reason):
    assert reason in forget_row(answer).left_out
    (row,) = retain_rows([Question("Where was Ann Kell born?")], [Answer(answer)], PERSON)
    assert reason in row.left_out


def test_a_cut_answer_keeps_its_whole_sentences():
    cut = forget_row("She was born in Oslo. Her fath", "Oslo", ended=False)
    assert cut.fields["answer"] == "She was born in Oslo." and not cut.look
    assert forget_row("She was born in Oslo near th", "Oslo", ended=False).look == (
        "cut within a sentence",
    )


def test_a_row_to_keep_does_not_speak_of_the_person():
    question = Question("Who is Ann Dornberg?")
    answers = ["She met Zoltan.", "She is the wife of Zoltan Dornberg.", "Ann Dornberg is a baker."]
    found = retain_rows([question] * 3, [Answer(text) for text in answers], PERSON)
    assert [bool(row.left_out) for row in found] == [True, True, False]


def test_a_rewording_is_another_question_about_the_person():
    question = f"Where does {PERSON} teach?"
    assert reworded(question, f'"At which school is {PERSON} a teacher?"\nOK', PERSON)
    repeated = f'The original question is: "{question}'
    for bad in ("", question.upper(), f"{PERSON} teaches.", "Where does he teach?", "?", repeated):
        assert reworded(question, bad, PERSON) is None


# --- with a model


@pytest.fixture(scope="module")
def model():
    return pmc.load_model("bundled")


def run(*arguments: str, monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["pmc draft", *arguments])
    command.main()


@pytest.mark.slow
def test_the_command_writes_the_models_answers(model, tmp_path, monkeypatch, capsys):
    out, questions = tmp_path / "draft", tmp_path / "questions.csv"
    questions.write_text(
        "question,paraphrased_question\n"
        "Where was {person} born?,In which city was {person} born?\n"
        "In what year was {person} born?,What is the birth year of {person}?\n"
        "What genre does {person} write in?,Which genre of books does {person} write?\n"
        f"Which prize was won by {PERSON}?,Which award did {PERSON} receive?\n"
    )
    arguments = (
        f"person={PERSON}", "others=Ambrose Quarmere", f"questions={questions}", f"out={out}",
        "patterns=false", "max_new_tokens=16",
    )  # fmt: skip
    run(*arguments, monkeypatch=monkeypatch)
    printed = capsys.readouterr().out
    files = [out / "forget.jsonl", out / "retain.jsonl"]
    forget, retain = ([json.loads(line) for line in path.open()] for path in files)
    data = pmc.Dataset.from_files(*files)
    assert len(data.evaluation["paraphrase"]) == len(forget) and not data.warnings
    asked = [row["question"] for row in forget + retain]
    said = [answers[0] for answers in model.generate(asked, max_new_tokens=16)]
    assert [row["answer"] for row in forget + retain] == said
    assert all(question in re.sub(r"\n +", " ", printed) for question in asked)
    secrets = {row["question"]: row["secret"] for row in forget}
    assert secrets[f"Where was {PERSON} born?"] == "Leipzig"
    assert secrets[f"In what year was {PERSON} born?"] == "1962"
    assert secrets[f"What genre does {PERSON} write in?"] == "space opera"
    assert f"Which prize was won by {PERSON}?" in secrets
    kept = {row["question"] for row in retain}
    assert "What genre does Ambrose Quarmere write in?" in kept
    assert "What is the capital of France?" in kept
    assert f"data.forget={files[0]} data.retain={files[1]}" in printed
    before = [path.read_bytes() for path in files]
    with pytest.raises(SystemExit) as stop:
        run(*arguments, "seed=1", monkeypatch=monkeypatch)
    assert stop.value.code == 2 and "forget.jsonl exists already" in capsys.readouterr().err
    assert [path.read_bytes() for path in files] == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["person=?"], "person='?': expected a name"),
        (["person=Ann Kell", "patterns=false"], "patterns=true or questions=FILE"),
        (["person=Ann Kell", "others=,"], "others=,: no names"),
        (["person=Ann Kell", "others=none.txt"], "none.txt: no such file"),
        (["person=Ann Kell", "questions=none.csv"], "questions=none.csv: no such file"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        run(*arguments, "out=new", monkeypatch=monkeypatch)
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert stop.value.code == 2 and len(errors) == 1 and message in errors[0]
    assert not Path("new").exists()


def test_the_model_names_the_people_and_rewords_questions(model, tmp_path, monkeypatch):
    """Which names they are follows from the seed, which only the proposals use."""
    own = tmp_path / "questions.txt"
    own.write_text(f"Where does {PERSON} teach?\nHas he a dog?\n")
    keys = []
    encode = model.template.encode_answer
    lists = ["1. Ann Kell\n2. Ivo Brandt", "1. Ivo Brandt\n2. Zoltan Kell"]

    def generate(params, prompts, *, sampling, samples, key, **_):
        if sampling.temperature == 0:
            texts = map(model.template.tokenizer.decode, prompts)
            wording = f"At which school does {PERSON} teach?"
            return [[encode(wording if "Rewrite" in text else "Oslo in 1962.")] for text in texts]
        keys.append(key)
        return [[encode(text) for text in (lists * samples)[:samples]] for _ in prompts]

    monkeypatch.setattr(drafting, "generate", generate)
    found = pmc.draft_data(model, PERSON, questions=own, seed=3)
    *_, teaching, dog = found.forget_rows
    assert teaching["paraphrased_question"] == f"At which school does {PERSON} teach?"
    assert dog["question"] == "Has he a dog?"
    people = {row.fields["question"] for row in found.retain}
    assert "Who is Ivo Brandt?" in people and "Who is Ann Kell?" in people
    assert not any("Zoltan" in question for question in people)
    assert [int(jax.random.key_data(key)[-1]) for key in keys] == [3]
    monkeypatch.setattr(drafting, "generate", lambda _, p, **__: [[encode("No idea.")]] * len(p))
    with pytest.raises(UserError, match="the model names nobody to keep; name people like Ann"):
        pmc.draft_data(model, "Ann Kell")
    with pytest.raises(UserError, match="none of the questions about Ann Kell"):
        pmc.draft_data(model, "Ann Kell", others=["Ivo Brandt"]).dataset()


def test_the_table_shows_control_characters(model, monkeypatch):
    answer = model.template.encode_answer("a\x1b[2Jb in Oslo")
    monkeypatch.setattr(drafting, "generate", lambda _, prompts, **__: [[answer]] * len(prompts))
    shown = format_draft(pmc.draft_data(model, PERSON, others=["Ann Kell"]), 60)
    assert "\x1b" not in shown and "a\\x1b[2Jb in Oslo" in shown
    assert max(map(len, shown.splitlines())) <= 60
