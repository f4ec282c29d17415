"""The sampler's savings change no selected response, no memory and no weights."""

import dataclasses
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import bpe_tokenizer, random_llama
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from convert.load import load_checkpoint
from pmc_jax.data.prompt_config import PromptConfig
from pmc_jax.data.prompts import make_template
from pmc_jax.decoding import layout
from pmc_jax.language_model import LanguageModel
from pmc_jax.training.loop import StepRecord, steps
from pmc_jax.training.optimizer import Optimizer, make_optimizer, make_schedule
from pmc_jax.training.step import RunState, init_state, make_train_step
from pmc_jax.unlearning.beginnings import fact_places
from pmc_jax.unlearning.method import Example, Run, Task
from pmc_jax.unlearning.pmc import (
    PMC,
    empty_memory,
    response_score,
    score_bound,
    select,
    update_memory,
)
from pmc_jax.unlearning.pmc.step import remember_best, score_samples
from pmc_jax.unlearning.savings.pruning import cannot_be_selected, tokens_saved
from pmc_jax.unlearning.schedule import Training

WORDS = ("river", "rivers", "mara", "of", "kell", ".", "é", "oslo")


def word_tokenizer() -> PreTrainedTokenizerFast:
    """One token per word, joined by spaces."""
    names = ["<s>", "</s>", "<unk>", *WORDS]
    vocabulary = {name: i for i, name in enumerate(names)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def byte_fallback_tokenizer() -> PreTrainedTokenizerFast:
    """Pieces and single bytes, as in sentencepiece."""
    pieces = ["▁", "a", "b", "▁a", "▁Answer", ":", "n", "▁é", "ns", "wer"]
    names = ["<s>", "</s>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    vocabulary = {name: i for i, name in enumerate(names)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], byte_fallback=True, unk_token="<unk>"))
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


TEMPLATES = {
    (name, answer): make_template(tokenizer, PromptConfig(template="plain", answer=answer))
    for name, tokenizer in (
        ("bytes", bpe_tokenizer()),
        ("fallback", byte_fallback_tokenizer()),
        ("words", word_tokenizer()),
    )
    for answer in (" {answer}", "Answer: {answer}", "a:\n{answer}")
}
ORIGINALS = ("a b answer Lisbon, born in", "Answer: a", "дом a", "дом é", "...", "")


@st.composite
def texts_and_tokens(draw, size):
    """Readable text, with or without an answer tag before it, and random tokens after it."""
    text = draw(st.text("abé :\nAnswerдİΣ😀\ufffd", max_size=12))
    tag = draw(st.sampled_from(["", "Answer:", "Answer: ", "\nAnswer:\n", "a:\n", "Answ"]))
    anything = draw(st.lists(st.integers(0, size - 1), max_size=6))
    return tag + text, anything


@settings(max_examples=600, deadline=None)
@given(st.data(), st.sampled_from(sorted(TEMPLATES)), st.sampled_from(ORIGINALS))
def test_no_continuation_scores_less_than_the_bound(data, name, original):
    template = TEMPLATES[name]
    text, anything = data.draw(texts_and_tokens(len(template.tokenizer)))
    readable = template.tokenizer(text, add_special_tokens=False).input_ids
    tokens = [token for token in readable + anything if token not in template.stop_ids]
    best = 0.0
    for end in range(len(tokens) + 1):
        settled = template.decode_settled(tokens[:end])
        bound = score_bound(original, settled)
        assert bound >= best
        best = bound
        for min_len in (0, 3):
            score = response_score(original, template.decode(tokens[:end]), min_len=min_len)
            assert score >= best


@pytest.mark.parametrize(
    ("name", "pieces", "settled", "bound"),
    [
        (("words", " {answer}"), ["river", "of"], "river of", 0.5),
        (("words", " {answer}"), ["river", "of", "."], "river of .", 1.0),
        (("fallback", "Answer: {answer}"), ["▁Answer"], "", 0.0),
        (("fallback", "Answer: {answer}"), ["▁Answer", ":", "<0x0A>", "▁"], "", 0.0),
        (("fallback", " {answer}"), ["▁a", "<0x62>"], "a", 0.0),
        (("fallback", " {answer}"), ["▁a", "<0x20>", "</s>", "<0xC3>"], "a", 0.0),
    ],
    ids=["open word", "complete word", "half a tag", "tag and space", "byte", "open character"],
)
def test_what_is_not_settled_does_not_count(name, pieces, settled, bound):
    template = TEMPLATES[name]
    tokens = template.tokenizer.convert_tokens_to_ids(pieces)
    assert template.decode_settled(tokens) == settled
    assert score_bound("river of" if name[0] == "words" else "a answer", settled) == bound


def test_a_cut_character_does_not_end_a_word():
    """The bytes of é after "of" form one character only together."""
    template = TEMPLATES["bytes", " {answer}"]
    tokens = template.tokenizer("of é", add_special_tokens=False).input_ids
    assert "\ufffd" in template.decode(tokens[:-1])
    assert template.decode_settled(tokens[:-1]) == "of "
    assert template.decode_settled(tokens) == "of é"


VALUES = (0.0, 0.25, 0.5, 1.0)


@st.composite
def races(draw):
    """Scores of samples, bounds that grow up to them, a remembered score, and a wave's size."""
    count = draw(st.integers(1, 6))
    scores = draw(st.lists(st.sampled_from(VALUES), min_size=count, max_size=count))
    growth = [
        sorted(
            draw(
                st.lists(st.sampled_from(VALUES), max_size=3).map(
                    lambda b, s=s: [x for x in b if x <= s]
                )
            )
        )
        for s in scores
    ]
    return scores, growth, draw(st.sampled_from((*VALUES, np.inf))), draw(st.integers(1, count))


@settings(max_examples=500, deadline=None)
@given(races())
def test_pruning_leaves_the_memory_as_it_would_be(race):
    """Samples whose bounds grow step by step, in waves, against scoring all of them."""
    scores, growth, remembered, wave = race
    count = len(scores)
    found, bounds = np.full((1, count), np.inf), np.zeros((1, count))
    dropped = np.zeros(count, bool)
    for first in range(0, count, wave):
        for look in range(5):
            out = cannot_be_selected(np.array([remembered]), found, bounds)[0]
            dropped |= out & np.isinf(found[0])
            for j in range(first, min(first + wave, count)):
                if dropped[j]:
                    continue
                if look < len(growth[j]):
                    bounds[0, j] = growth[j][look]
                else:
                    found[0, j] = scores[j]
    memory = update_memory(empty_memory(1, 4), [0], [remembered], [[9]])

    def updated(scores):
        chosen = int(select(scores)[0])
        return update_memory(memory, [0], [scores[0, chosen]], [[chosen + 1]])

    pruned, plain = updated(found), updated(np.array([scores]))
    assert pruned.score == plain.score and pruned.tokens[0, 0] == plain.tokens[0, 0]


@pytest.mark.parametrize(
    ("remembered", "scores", "bounds", "out"),
    [
        (0.5, [np.inf, np.inf], [0.5, 0.6], [False, True]),
        (np.inf, [0.5, np.inf, np.inf], [0, 0.5, 0.4], [True, False]),
        (np.inf, [np.inf, 0.5, np.inf], [0.5, 0, 0.6], [False, True]),
        (np.inf, [0.0, np.inf, np.inf], [0, 0, 0], [True, True]),
    ],
    ids=["memory", "earlier one", "later one", "nothing beats 0"],
)
def test_each_condition_of_pruning(remembered, scores, bounds, out):
    found = cannot_be_selected(
        np.array([remembered]), np.array([scores]), np.array([bounds], float)
    )
    assert found[0, np.isinf(scores)].tolist() == out


def test_saved_tokens_are_what_cut_samples_lack_on_average():
    responses = [[[1] * 6, [1] * 10, [1] * 3], [[1] * 9, [], [1] * 8]]
    whole = np.array([[True, True, False], [False, False, True]])
    assert tokens_saved(responses, whole) == (8 - 3) + 0 + 8
    assert tokens_saved([[[1, 2]]], np.array([[False]])) == tokens_saved([], whole[:0]) == 0


PLAIN = Training(
    epochs=2, batch_size=3, max_length=48, prune=False, wave=0, compact=False, grow_cache=False,
    chunk=64, drafts=False,
)  # fmt: skip
SWITCHES = {
    "prune": {"prune": True, "chunk": 3},
    "wave": {"wave": 2},
    "compact": {"compact": True, "chunk": 4},
    "grow_cache": {"grow_cache": True, "decode_batch": 8},
    "drafts": {"drafts": True, "chunk": 3},
    "all": {
        "prune": True,
        "wave": 2,
        "compact": True,
        "grow_cache": True,
        "chunk": 2,
        "drafts": True,
    },
}
QUESTIONS = ("river of kell", "oslo", "mara of oslo river kell")


@pytest.fixture(scope="module")
def words_model(tmp_path_factory):
    """A small model over words in float64, with its train step, compiled once."""
    template = TEMPLATES["words", " {answer}"]
    directory = tmp_path_factory.mktemp("words")
    random_llama(std=0.4, vocab_size=len(template.tokenizer), num_hidden_layers=2).save_pretrained(
        directory
    )
    jax.config.update("jax_enable_x64", True)
    checkpoint = load_checkpoint(directory, dtype="float64")
    schedule = make_schedule(Optimizer(learning_rate=1e-2, schedule="constant"), 2, 1)
    optimizer = make_optimizer(Optimizer(), checkpoint.cfg, schedule)
    step = make_train_step(optimizer, PMC(), checkpoint.cfg, dtype=jnp.float64)
    jax.config.update("jax_enable_x64", False)
    return checkpoint, optimizer, step


def new_run(words_model, pmc, training, seed) -> tuple[Run[PMC], RunState]:
    """A short run before its first step, on a model that depends on `seed`."""
    checkpoint, optimizer, _ = words_model
    template = TEMPLATES["words", " {answer}"]
    rng = np.random.default_rng(seed)
    params = jax.tree.map(
        lambda leaf: leaf + jnp.asarray(0.2 * rng.normal(size=leaf.shape)), checkpoint.params
    )
    originals = [" ".join(rng.choice(WORDS, rng.integers(1, 6))) for _ in QUESTIONS]
    task = Task(
        model=LanguageModel({}, checkpoint.cfg, template, checkpoint.directory, dtype="float64"),
        training=training,
        seed=seed,
        prompts=[template.encode_prompt(question) for question in QUESTIONS],
        retain=[Example(template.encode_prompt("oslo"), template.encode_answer("mara"))],
    )
    prepared = {"originals": originals, "facts": fact_places(task, originals)}
    run = Run(pmc, task, pmc.examples_of(task), prepared)
    return run, RunState(init_state(params, optimizer), pmc.initial_state(task))


def finished_run(words_model, pmc, training, seed) -> tuple[RunState, list[StepRecord]]:
    """The state after the whole run, and the records of its steps."""
    run, state = new_run(words_model, pmc, training, seed)
    records = []
    for state, record in steps(run, words_model[2], {}, state):  # noqa: B007, B020
        records.append(record)
    return state, records


def test_equal_samples_are_scored_once(words_model, monkeypatch, x64):
    run, state = new_run(words_model, PMC(samples=3, min_len=0), PLAIN, seed=0)
    originals, template = run.prepared["originals"], run.task.model.template
    scored = []

    def noting(original, response, **options):
        scored.append((original, response))
        return response_score(original, response, **options)

    monkeypatch.setattr("pmc_jax.unlearning.pmc.reward.response_score", noting)
    samples = [[template.encode_answer(answer) for answer in ("mara", "oslo", "mara")]] * 2
    scores = score_samples(run, [0, 1], samples)
    whole = np.isfinite(scores)
    assert whole.all()
    memory = remember_best(run, state.method, 0, [0, 1], samples, scores)
    assert scored == [(originals[i], word) for i in (0, 1) for word in ("mara", "oslo")]
    for i in (0, 1):
        expected = [response_score(originals[i], word) for word in ("mara", "oslo")]
        assert memory.score[i] == min(expected)


def assert_same_end(found: RunState, expected: RunState) -> None:
    for a, b in zip(
        jax.tree.leaves((found.method, found.train.params)),
        jax.tree.leaves((expected.method, expected.train.params)),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)


def check_switches(words_model, names, seed, samples, min_len, limit, keep_sampling):
    pmc = PMC(
        samples=samples, min_len=min_len, reject_wordless=bool(min_len), max_new_tokens=limit,
        keep_sampling=keep_sampling,
    )  # fmt: skip
    jax.config.update("jax_enable_x64", True)
    try:
        plain, plain_records = finished_run(words_model, pmc, PLAIN, seed)
        assert all(record.measures["tokens_saved"] == 0 for record in plain_records)
        counts = {"plain": sum(record.measures["tokens_sampled"] for record in plain_records)}
        for name in names:
            training = dataclasses.replace(PLAIN, **SWITCHES[name])
            # As if there were many rows: chunks then end early and shapes halve. "compact" keeps
            # few rows.
            with mock.patch.object(layout, "MANY_ROWS", 128 if name == "compact" else 1):
                state, records = finished_run(words_model, pmc, training, seed)
            assert_same_end(state, plain)
            counts[name] = sum(record.measures["tokens_sampled"] for record in records)
            assert counts[name] <= counts["plain"]
    finally:
        jax.config.update("jax_enable_x64", False)
    return counts


@pytest.mark.slow
@pytest.mark.parametrize("keep_sampling", [False, True])
def test_all_savings_together_end_in_the_same_weights(words_model, keep_sampling):
    counts = check_switches(words_model, ["all"], 0, 4, 2, 14, keep_sampling)
    assert counts["all"] < counts["plain"]


@pytest.mark.slow
@settings(max_examples=6, deadline=None)
@given(
    st.integers(0, 2**16), st.sampled_from((1, 4, 6)), st.sampled_from((0, 2, 4)),
    st.sampled_from((4, 14, 40)), st.booleans(),
)  # fmt: skip
def test_each_saving_ends_in_the_same_weights(
    words_model, seed, samples, min_len, limit, keep_sampling
):
    check_switches(words_model, list(SWITCHES), seed, samples, min_len, limit, keep_sampling)
