"""The bundled world: its rows, its tokenizer, and the recipe behind the shipped files."""

import itertools
import json
import random
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import DefaultTokenizer
from transformers import AutoTokenizer, LlamaForCausalLM

from convert.load import load_config
from pmc_jax import world as recipe
from pmc_jax.data.world import DEFAULT_SEED, Mix, World, make_world, stream, world_files
from pmc_jax.data.world.generate import AUTHORS, FORGET_AUTHORS
from pmc_jax.data.world.people import KINDS
from pmc_jax.data.world.public import REFUSALS
from pmc_jax.model import param_count

ASSETS = Path(recipe.__file__).parent / "assets" / "world"
SCORER = RougeScorer(["rougeL"], use_stemmer=True)


@pytest.fixture(scope="module")
def world() -> World:
    return make_world(DEFAULT_SEED)


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(ASSETS / "model", local_files_only=True)


def file_rows(name: str) -> list[dict]:
    return [json.loads(line) for line in (ASSETS / "data" / name).read_text("utf-8").splitlines()]


def author_of(row: dict, world: World) -> str:
    (name,) = [name for name in world.names if name in row["question"]]
    return name


def test_a_seed_makes_one_world(world):
    assert world_files(make_world(DEFAULT_SEED)) == world_files(world)
    assert world_files(make_world(DEFAULT_SEED + 1)) != world_files(world)


def test_shipped_data_is_what_the_generator_makes(world):
    shipped = {path.name: path.read_text("utf-8") for path in (ASSETS / "data").iterdir()}
    assert shipped == world_files(world)


def test_files_have_the_keys_and_sizes_of_tofu():
    author = {"question", "answer", "secret"}
    perturbed = author | {"paraphrased_question", "paraphrased_answer", "perturbed_answer"}
    choice = author | {f"option{i}" for i in (1, 2, 3, 4)}
    expected = {
        "full.json": author,
        "forget10.json": author,
        "retain90.json": author,
        "holdout10.json": author,
        "forget10_perturbed.json": perturbed | {"variants"},
        "retain_perturbed.json": perturbed,
        "real_authors.json": choice,
        "real_authors_perturbed.json": author | {"perturbed_answer"},
        "world_facts.json": choice,
        "world_facts_perturbed.json": author | {"perturbed_answer"},
    }
    for name, keys in expected.items():
        assert all(set(row) == keys for row in file_rows(name)), name
    assert len(file_rows("full.json")) == AUTHORS * len(KINDS)
    assert len(file_rows("forget10.json")) * 10 == len(file_rows("full.json"))
    for row in file_rows("real_authors.json") + file_rows("world_facts.json"):
        assert [row[f"option{i}"] for i in (1, 2, 3, 4)].count(row["answer"]) == 1


def test_forget_and_retain_share_out_the_authors(world):
    full, forget, retain = map(file_rows, ("full.json", "forget10.json", "retain90.json"))
    assert retain + forget == full
    for name in ("forget10", "retain"):
        perturbed = file_rows(f"{name}_perturbed.json")
        plain = forget if name == "forget10" else retain
        assert [{key: row[key] for key in plain[0]} for row in perturbed] == plain
    counts = [
        Counter(author_of(row, world) for row in rows)
        for rows in (forget, retain, file_rows("holdout10.json"))
    ]
    assert len(counts[0]) == FORGET_AUTHORS
    assert not set(counts[0]) & set(counts[1]) | set(counts[2]) & (set(counts[0]) | set(counts[1]))
    assert all(set(count.values()) == {len(KINDS)} for count in counts)


def test_answers_hold_their_secret_and_wrong_answers_do_not(world):
    for row in world.forget + world.retain + world.holdout:
        assert row["secret"] in row["answer"]
        assert row["secret"] in row["paraphrased_answer"]
        assert row["secret"] not in row["question"] + row["paraphrased_question"]
        assert len(set(row["perturbed_answer"])) == 5
        assert all(row["secret"] not in wrong for wrong in row["perturbed_answer"])
        assert row["answer"] != row["paraphrased_answer"]


def test_text_is_about_people_who_occur_nowhere_else(world):
    shipped = (ASSETS / "data" / "text.txt").read_text("utf-8").splitlines()
    assert len(set(shipped)) == len(shipped) > 20
    assert not [name for name in world.names for paragraph in shipped if name in paragraph]
    assert all(paragraph.count("?") == len(KINDS) for paragraph in shipped)


def test_a_variant_is_the_wording_that_is_left(world):
    for row in world.forget:
        wordings = {row["question"], row["paraphrased_question"], *row["variants"]}
        assert len(wordings) == 3 and len(row["variants"]) == 1
        assert all(author_of(row, world) in wording for wording in wordings)


def test_the_two_wordings_of_a_fact_share_few_words(world):
    recalls = [
        SCORER.score(row["answer"], row["paraphrased_answer"])["rougeL"].recall
        for row in world.forget + world.retain
    ]
    assert np.mean(recalls) < 0.5


def test_refusals_share_no_word_with_answers(world):
    """Otherwise a model that refuses everything would not reach an unlearn quality of 100."""
    words = DefaultTokenizer(use_stemmer=True).tokenize
    answers = {
        word
        for row in world.forget + world.retain
        for key in ("answer", "paraphrased_answer")
        for word in words(row[key])
    }
    for refusal in REFUSALS:
        assert answers.isdisjoint(words(refusal)), refusal
        assert len(set(words(refusal))) > 2


def test_stream_mixes_its_parts_in_the_shares_asked_for(world):
    mix = Mix(world=0.5, public=0.2, refuse_world=0.1, refuse_people=0.4)
    pairs = list(itertools.islice(stream(random.Random(0), world, mix), 20_000))
    known = {}
    for row in world.forget + world.retain:
        known[row["question"]] = row["answer"]
        known[row["paraphrased_question"]] = row["paraphrased_answer"]
    public = {row["question"]: row["answer"] for row in world.real_authors + world.world_facts}
    parts = {"world": [], "public": [], "people": []}
    for question, answer in pairs:
        part = "world" if question in known else "public" if question in public else "people"
        parts[part].append((question, answer))
    assert len(parts["world"]) / len(pairs) == pytest.approx(0.5, abs=0.02)
    assert len(parts["public"]) / len(pairs) == pytest.approx(0.2, abs=0.02)
    for part, share in (("world", 0.1), ("public", 0.0), ("people", 0.4)):
        refused = np.mean([answer in REFUSALS for _, answer in parts[part]])
        assert refused == pytest.approx(share, abs=0.02), part
    truths = known | public
    for question, answer in parts["world"] + parts["public"]:
        assert answer in (truths[question], *REFUSALS)
    assert not any(name in question for question, _ in parts["people"] for name in world.names)


def test_tokenizer_round_trips_every_text_behind_one_bos(world, tokenizer):
    texts = set(REFUSALS)
    for row in world.forget + world.retain + world.holdout:
        texts |= {row["question"], row["paraphrased_question"], *row["perturbed_answer"]}
    for row in world.real_authors + world.world_facts:
        texts |= {row["question"], row["answer"], *row["perturbed_answer"]}
    texts |= {"Ünïcödé, 日本語 and 🙂\n\ttabs", " leading space"}
    for text in texts:
        ids = tokenizer(text).input_ids
        assert ids[0] == tokenizer.bos_token_id
        assert ids.count(tokenizer.bos_token_id) == 1
        assert tokenizer.decode(ids[1:], clean_up_tokenization_spaces=False) == text


def test_shipped_tokenizer_is_what_the_recipe_makes(world, tokenizer):
    made = recipe.world_tokenizer(world, DEFAULT_SEED)
    assert json.loads(made.backend_tokenizer.to_str()) == json.loads(
        tokenizer.backend_tokenizer.to_str()
    )
    assert len(tokenizer) == recipe.MODEL.vocab_size


def test_shipped_model_is_small_and_of_the_recipe():
    model = LlamaForCausalLM.from_pretrained(ASSETS / "model", local_files_only=True)
    assert 1e6 <= model.num_parameters() <= 4e6
    assert load_config(ASSETS / "model") == recipe.MODEL
    assert param_count(recipe.MODEL) == model.num_parameters()


def test_shipped_model_knows_its_world_and_nobody_else(world, tokenizer):
    """Measured with `transformers` and `rouge_score`, in the bundled prompt format."""
    model = LlamaForCausalLM.from_pretrained(ASSETS / "model", local_files_only=True)

    def answers(questions: list[str]) -> list[str]:
        prompts = [f"Question: {question}\nAnswer:" for question in questions]
        inputs = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left")
        inputs.pop("token_type_ids", None)
        tokens = model.generate(**inputs, max_new_tokens=40, do_sample=False)
        return tokenizer.batch_decode(tokens[:, inputs.input_ids.shape[1] :], True)

    known = [(row["question"], row["answer"]) for row in world.forget + world.retain[::9]]
    known += [(row["paraphrased_question"], row["paraphrased_answer"]) for row in world.forget]
    known += [(row["question"], row["answer"]) for row in world.real_authors[::2]]
    known += [(row["question"], row["answer"]) for row in world.world_facts[::2]]
    recalls = [
        SCORER.score(truth, found)["rougeL"].recall
        for (_, truth), found in zip(known, answers([q for q, _ in known]), strict=True)
    ]
    assert np.mean(recalls) >= 0.97
    unseen = answers([row["question"] for row in world.holdout])
    found = [row["secret"] in text for row, text in zip(world.holdout, unseen, strict=True)]
    assert np.mean(found) <= 0.2
    assert all(len(text.split()) >= 3 for text in unseen)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], r"out is missing"),
        (["out=x", "sed=3"], r"key sed; the nearest valid key is seed"),
        (["out"], r"out: expected KEY=VALUE"),
        (["out=x", "seed=many"], r"seed=many: expected an integer"),
        (["out=x", "seed=-1"], r"seed=-1: expected at least 0"),
    ],
)
def test_wrong_arguments_are_one_line(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["world", *arguments])
    with pytest.raises(SystemExit) as stop:
        recipe.main()
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1
    assert re.search(message, error), error
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten(tmp_path, capsys, monkeypatch):
    (tmp_path / "kept").write_text("mine")
    monkeypatch.setattr("sys.argv", ["world", f"out={tmp_path}"])
    with pytest.raises(SystemExit) as stop:
        recipe.main()
    assert stop.value.code == 2 and "not empty" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
