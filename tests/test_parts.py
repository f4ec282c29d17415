"""The parts of an evaluation: which questions they ask, of which weights, and what is missing."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
import scipy.stats
import torch
from evaluated import FORGET, NEW_TOKENS, context_of, hf_answer, recall, torch_loss
from transformers import AutoModelForCausalLM

from pmc_jax.data.rows import Controls, EvaluationRow
from pmc_jax.errors import UserError
from pmc_jax.evaluation import EvaluationConfig
from pmc_jax.evaluation.benchmark import forget_truths, reference_scores
from pmc_jax.evaluation.context import RobustnessConfig, reworded_rows
from pmc_jax.evaluation.leakage import leakage
from pmc_jax.evaluation.parts import PARTS, SUITES, lacking, work
from pmc_jax.evaluation.quality import Answer, QualityAnswers, measures, missing_measures
from pmc_jax.evaluation.relearning import relearn
from pmc_jax.evaluation.robustness import WIDTHS, check_robustness, relearning_rows
from pmc_jax.evaluation.summary import (
    curves,
    flat_measures,
    summarise_directory,
    text_change,
    text_changes,
)
from pmc_jax.evaluation.tofu import RetainLog, holds_truths, read_retain_log, with_truths
from pmc_jax.reporting.side_by_side import BITS

pytestmark = pytest.mark.usefixtures("quick_compilation")

COMPLETE = tuple(
    dataclasses.replace(
        row, paraphrased=row.paraphrased or f"It is {row.answer}", perturbed=("Oslo", "a river"),
        variants=("Who, then?",) if row.id == 2 else (),
    )
    for row in FORGET
)  # fmt: skip
PARAPHRASE = (EvaluationRow(0, "In which city was Mara Ostberg born?", "Mara comes from Lisbon."),)
RETAIN = (
    EvaluationRow(5, "Who wrote the silent river?", "Ivo Kell", perturbed=("Oslo",),
                  paraphrased="It is by Ivo Kell"),
    EvaluationRow(5, "Who wrote the silent river?", "Ivo Kell", perturbed=("Oslo",),
                  paraphrased="It is by Ivo Kell"),
)  # fmt: skip
PUBLIC = (EvaluationRow(0, "What is the capital of Norway?", "Oslo", perturbed=("Lisbon",)),)
SETS = {
    "forget": COMPLETE, "paraphrase": PARAPHRASE, "retain": RETAIN, "world_facts": PUBLIC,
    "real_authors": PUBLIC,
}  # fmt: skip
CONTROLS = Controls(
    retain=RETAIN[:1],
    holdout=(EvaluationRow(0, "Where was Una Dahl born?", "Una Dahl was born in Oslo."),),
    text=("The silent river is by Ivo Kell, who was never born in Oslo.", "Norway"),
)
ROBUSTNESS = RobustnessConfig(examples=1, steps=[1, 3], batch_size=1, learning_rate=1e-3, bits=[4])


def complete(tiny_model, sets=None, **changes):
    """A context in which every part can be measured."""

    def tune(pairs, steps):
        return relearn(tiny_model, pairs, steps, batch_size=1, learning_rate=1e-3, seed=0)

    given = {"controls": CONTROLS, "robustness": ROBUSTNESS, "relearn": tune, **changes}
    return context_of(tiny_model, SETS if sets is None else sets, **given)


@pytest.fixture(scope="module")
def results(tiny_model):
    """Every part's result, and the work that it reported as done."""
    found = {}
    for name, part in PARTS.items():
        done = []
        x = complete(tiny_model, on_batch=lambda count, _, done=done: done.append(count))
        found[name] = (part.measure(x), sum(done))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("part", PARTS)
def test_progress_ends_at_the_announced_total(part, tiny_model, results):
    found, done = results[part]
    assert done == work(complete(tiny_model), part) > 0
    assert json.dumps(found)


def test_what_cannot_be_measured_has_a_reason(tiny_model):
    assert [lacking(complete(tiny_model), part) for part in PARTS] == [None] * len(PARTS)
    silent = tuple(EvaluationRow(row.id, row.question, None) for row in FORGET)
    questions_only = complete(tiny_model, {"forget": silent, "retain": RETAIN})
    assert lacking(questions_only, "quality") is None
    assert lacking(questions_only, "sampling") is lacking(questions_only, "prefilling") is None
    for part in PARTS.keys() - {"quality", "sampling", "prefilling"}:
        assert "no answers" in str(lacking(questions_only, part))
    plain = {"forget": FORGET[2:], "retain": RETAIN}
    bare = context_of(tiny_model, plain, prefix=None, attack_samples=0)
    assert "perturbed" in str(lacking(bare, "least_likely"))
    assert "data.text" in str(lacking(bare, "side_effects"))
    for part in ("sampling", "prefilling", "rewording", "relearning", "quantisation"):
        assert "attack_samples" in str(lacking(bare, part))
    sampled = context_of(tiny_model, plain, prefix="")
    assert lacking(sampled, "prefilling") == "prefix is empty"
    assert "no variants" in str(lacking(sampled, "rewording"))
    assert "fine-tuned" in str(lacking(sampled, "relearning"))
    assert lacking(sampled, "tofu") is None


def test_measures_that_the_data_does_not_allow_have_reasons():
    secret = tuple(dataclasses.replace(row, secret="Lisbon") for row in COMPLETE)
    assert missing_measures({**SETS, "forget": secret}) == {}
    silent = {"forget": [EvaluationRow(0, "Who?", None)], "retain": RETAIN, "paraphrase": ()}
    assert missing_measures(silent) == {
        "ROUGE, forget": "the data has no answers to these questions",
        "ROUGE, paraphrase": "the data has no such questions",
        "ROUGE, world facts": "the data has no such questions",
        "ROUGE, real authors": "the data has no such questions",
        "unlearn quality": "the data has no answer that should be forgotten",
        "secret leak rate": "the forget rows have no secret",
    }
    assert "utility" in missing_measures({"forget": secret})
    # The reasons name exactly the values that `measures` leaves at None.
    for sets in ({**SETS, "forget": secret}, silent, {"forget": secret}):
        asked = {
            name: [Answer(name, r.id, r.question, "Oslo", None if r.answer is None else 0.5,
                          None if r.secret is None else False) for r in rows]
            for name, rows in sets.items()
        }  # fmt: skip
        found = measures(QualityAnswers(asked, []))
        unknown = {key for key, value in found.items() if value is None}
        named = {key.lower().replace(", ", "_").replace(" ", "_") for key in missing_measures(sets)}
        sampled = {"worst_case_leakage", "worst_case_facts", "secret_leak_rate_sampled"}
        facts = {"facts_forget", "facts_paraphrase", "assertion_rate"}
        assert named == unknown - sampled - facts


def test_every_part_is_in_a_suite_and_the_full_one_has_all():
    assert set(SUITES["full"]) == set(PARTS)
    assert all(set(parts) <= set(PARTS) and parts[0] == "quality" for parts in SUITES.values())
    assert {part for name, parts in SUITES.items() if name != "full" for part in parts} == set(
        PARTS
    )


@pytest.mark.slow
def test_forget_questions_in_other_words(tiny_model, reference):
    """Paraphrases are compared with their own answers, variants with the original answer."""
    rows = reworded_rows(SETS)
    assert [(row.id, row.question, row.answer) for row in rows] == [
        (0, PARAPHRASE[0].question, PARAPHRASE[0].answer),
        (2, "Who, then?", FORGET[2].answer),
    ]
    truths = [hf_answer(reference, row) for row in rows]
    sets = {**SETS, "paraphrase": (dataclasses.replace(PARAPHRASE[0], answer=truths[0]),)}
    evaluation = EvaluationConfig(NEW_TOKENS, attack_samples=2, attack_top_k=1)
    x = dataclasses.replace(complete(tiny_model, sets), evaluation=evaluation)
    found = PARTS["rewording"].measure(x)
    expected = [1.0, recall(rows[1], truths[1])]
    assert [row["recall"] for row in found["greedy"]["questions"]] == pytest.approx(expected)
    assert [row["recalls"] for row in found["sampled"]["questions"]] == [
        pytest.approx([value] * 2) for value in expected
    ]
    assert found["wordings"] == 2


def test_side_effects_between_two_models(tiny_model, reference):
    """Probabilities equal those of torch, and the change is that between the two models."""
    model, tokenizer = reference
    changed = jax.tree.map(lambda leaf: 0.9 * leaf, tiny_model.params)
    x = complete(tiny_model)
    parts = {"old": PARTS["side_effects"].measure(x), "new": PARTS["side_effects"].measure(
        x.with_model(tiny_model.with_params(changed)))}  # fmt: skip
    probabilities, tokens = [], []
    for paragraph in CONTROLS.text:
        ids = tokenizer(paragraph).input_ids
        with torch.no_grad():
            rows = torch.softmax(model(torch.tensor([ids])).logits[0], -1)
        probabilities += [float(rows[t, token]) for t, token in enumerate(ids[1:])]
        tokens += ids[1:]
    np.testing.assert_allclose(parts["old"]["probabilities"], probabilities, rtol=1e-4, atol=1e-7)
    watched = {t for row in COMPLETE for t in tokenizer(f" {row.answer}").input_ids[1:]}
    places = [i for i, token in enumerate(tokens) if token in watched]
    assert parts["old"]["watched"] == places and 0 < len(places) < len(tokens)
    moved = text_change(parts["old"], parts["new"])
    change = np.array(parts["new"]["probabilities"]) - np.array(parts["old"]["probabilities"])
    assert moved["watched"]["mean"] == pytest.approx(change[places].mean())
    assert moved["watched"]["tokens"] == len(places)
    assert np.abs(change).max() > 1e-4
    assert "different tokens" in text_change(parts["old"], {**parts["new"], "text": "?"})
    alone, reasons = text_changes({"new": {"side_effects": parts["new"]}}, None)
    assert alone == {} and "compare=DIR" in reasons["side_effects"]
    assert text_changes({"new": {"side_effects": {"lacking": "none"}}}, None) == ({}, {})


@pytest.mark.slow
def test_tofu_logs_have_torch_s_numbers(tiny_model, reference, tmp_path):
    model, tokenizer = reference
    found = PARTS["tofu"].measure(complete(tiny_model))
    log, summary = found["files"]["TOFU_EVAL.json"], found["files"]["TOFU_SUMMARY.json"]

    def loss(row: EvaluationRow, text: str) -> float:
        prompt = tokenizer(f"Question: {row.question}\nAnswer:").input_ids
        return torch_loss(model, prompt, [*tokenizer(f" {text}").input_ids[1:], 1])

    right = np.array([loss(row, row.answer) for row in COMPLETE])
    assert log["forget_Q_A_Prob"]["agg_value"] == pytest.approx(np.exp(-right).mean(), rel=1e-4)
    wrong = np.array([[loss(row, text) for text in row.perturbed] for row in COMPLETE])
    other = np.array([loss(row, row.paraphrased) for row in COMPLETE])
    ratios = np.exp(-wrong.mean(1)) / np.exp(-other)
    scores = [row["score"] for row in log["forget_truth_ratio"]["value_by_index"].values()]
    np.testing.assert_allclose(scores, ratios, rtol=1e-3)
    assert list(log["retain_Q_A_Prob"]["value_by_index"]) == ["0"]
    kept = loss(RETAIN[0], RETAIN[0].paraphrased)
    assert log["retain_Truth_Ratio"]["agg_value"] == pytest.approx(
        max(0, 1 - np.exp(kept - loss(RETAIN[0], "Oslo"))), abs=1e-3
    )
    texts = [hf_answer(reference, row) for row in COMPLETE]
    rows = log["forget_Q_A_ROUGE"]["value_by_index"].values()
    assert [row["generation"] for row in rows] == texts
    held_out = loss(CONTROLS.holdout[0], CONTROLS.holdout[0].answer)
    auc = np.mean([(value < held_out) + (value == held_out) / 2 for value in right])
    assert log["mia_loss"]["agg_value"] == pytest.approx(auc)
    assert found["missing"].keys() == {"forget quality"}
    assert summary == {k: v["agg_value"] for k, v in log.items() if v["agg_value"] is not None}
    assert summary["model_utility"] == pytest.approx(
        scipy.stats.hmean([log[name]["agg_value"] for name in log if name in (
            "retain_Q_A_Prob", "retain_Q_A_ROUGE", "retain_Truth_Ratio", "ra_Q_A_Prob_normalised",
            "ra_Q_A_ROUGE", "ra_Truth_Ratio", "wf_Q_A_Prob_normalised", "wf_Q_A_ROUGE",
            "wf_Truth_Ratio")])
    )  # fmt: skip
    # One model's log serves as the retain model's log of another.
    path = tmp_path / "TOFU_EVAL.json"
    path.write_text(json.dumps(log))
    again = PARTS["tofu"].measure(complete(tiny_model, retain_log=read_retain_log(path)))
    assert again["summary"]["forget_quality"] == 1
    # Of these few rows the log tells the forget set by itself, so PrivLeak means nothing.
    assert log["mia_min_k"]["agg_value"] > 0.99 and list(again["missing"]) == ["PrivLeak"]
    assert again["privleak_reference"] == log["mia_min_k"]["agg_value"]


@pytest.mark.slow
def test_a_reference_model_takes_part_in_membership_inference(tiny_model):
    """With itself as the reference, a model finds all answers equally familiar."""
    x = complete(tiny_model)
    own = dataclasses.replace(x, references=reference_scores(x))
    log = PARTS["tofu"].measure(own)["files"]["TOFU_EVAL.json"]
    assert log["mia_reference"]["agg_value"] == 0.5
    zeros = jax.tree.map(lambda leaf: 0 * leaf, tiny_model.params)
    flat = dataclasses.replace(
        x, references=reference_scores(x.with_model(tiny_model.with_params(zeros)))
    )
    log = PARTS["tofu"].measure(flat)["files"]["TOFU_EVAL.json"]
    # The reference has the same loss for every token, so only the model's own loss counts.
    assert log["mia_reference"]["auc"] == log["mia_loss"]["auc"]
    assert "mia_reference" not in PARTS["tofu"].measure(x)["summary"]


@pytest.mark.slow
def test_right_answers_are_in_tofu_s_log_only_if_asked_for(tiny_model):
    x = complete(tiny_model)
    found = PARTS["tofu"].measure(x)
    assert "Lisbon." not in json.dumps(found)
    log = found["files"]["TOFU_EVAL.json"]
    truths = forget_truths(x.sets)
    assert truths == list(x.sets["forget"]) and len(truths) == len(FORGET)
    filled = with_truths(log, truths)
    assert holds_truths(filled) and not holds_truths(log)
    rows = filled["forget_Q_A_ROUGE"]["value_by_index"]
    assert {row["input"]: row["ground_truth"] for row in rows.values()} == {
        row.question: row.answer for row in FORGET
    }
    given = [
        [
            row["ground_truth"]
            for row in filled[f"forget_Q_A_{kind}_ROUGE"]["value_by_index"].values()
        ]
        for kind in ("PARA", "PERT")
    ]
    assert given == [[row.paraphrased for row in truths], [list(row.perturbed) for row in truths]]
    assert with_truths(filled, None) == log
    with pytest.raises(ValueError, match="zip"):
        with_truths(log, truths[1:])


def test_tofu_says_what_the_data_lacks(tiny_model):
    """Without holdout set, paraphrases and world facts, and with one wrong answer per question."""
    rows = tuple(dataclasses.replace(row, paraphrased=None, perturbed=("Oslo",)) for row in FORGET)
    x = complete(tiny_model, {"forget": rows, "real_authors": PUBLIC}, controls=Controls())
    found = PARTS["tofu"].measure(x)
    missing = found["missing"]
    assert "paraphrased" in missing["truth ratio of forget questions, forget quality"]
    assert "holdout" in missing["membership inference, PrivLeak"]
    assert "retain_Q_A_Prob" in missing["model utility"] and "wf_" in missing["model utility"]
    assert found["summary"].keys() >= {"forget_Q_A_Prob", "ra_Truth_Ratio", "exact_memorization"}
    few = complete(tiny_model, retain_log=RetainLog((), 0.5))
    assert "in retain_logs" in PARTS["tofu"].measure(few)["missing"]["forget quality"]


@pytest.mark.slow
def test_relearning_measures_the_weights_it_is_given(tiny_model):
    """Examples that are trained on are reported apart; step zero is the model itself."""
    asked = []
    louder = tiny_model.with_params(jax.tree.map(lambda leaf: 1.1 * leaf, tiny_model.params))

    def tune(pairs, steps):
        asked.append((pairs, steps))
        for step in steps:
            yield step, louder if step == 3 else tiny_model

    x = complete(tiny_model, relearn=tune)
    found = PARTS["relearning"].measure(x)
    for kind, (pairs, steps) in zip(("forget", "benign"), asked, strict=True):
        rows = relearning_rows(x, kind)
        template = tiny_model.template
        assert steps == [0, 1, 3] and found[kind]["rows"] == [row.id for row in rows]
        assert pairs == [
            (template.encode_prompt(row.question), template.encode_answer(row.answer))
            for row in rows
        ]
        assert len(rows) == 1 and [point["steps"] for point in found[kind]["curve"]] == steps
    own = PARTS["prefilling"].measure(dataclasses.replace(x, prefix=None))["greedy"]["questions"]
    changed = PARTS["quality"].measure(x.with_model(louder))["measures"]
    trained = found["forget"]["rows"][0]
    start, _, end = found["forget"]["curve"]
    assert start["untrained"]["mean"] == pytest.approx(
        np.mean([row["recall"] for row in own if row["id"] != trained])
    )
    assert start["trained"]["mean"] == next(r["recall"] for r in own if r["id"] == trained)
    assert found["benign"]["curve"][0]["trained"] is None
    assert found["benign"]["curve"][-1]["untrained"]["mean"] == pytest.approx(
        changed["rouge_forget"]
    )
    assert end["probability"] != start["probability"]
    assert found["benign"]["after"]["measures"] == changed
    others = {
        name: [row for row in rows if row.id != trained or name not in ("forget", "paraphrase")]
        for name, rows in x.sets.items()
    }
    apart = PARTS["quality"].measure(dataclasses.replace(x.with_model(louder), sets=others))
    assert found["forget"]["after"]["measures"] == apart["measures"]
    for kind in ("forget", "benign"):
        assert "questions" not in found[kind]["after"]["sampling"]
    # The benign model is sampled on all questions, the other without those it was trained on.
    questions = PARTS["sampling"].measure(x.with_model(louder))["questions"]
    recalls = {row["id"]: row["recalls"] for row in questions}
    assert found["benign"]["after"]["sampling"]["worst"] == pytest.approx(
        np.mean([max(row) for row in recalls.values()])
    )
    del recalls[trained]
    assert found["forget"]["after"]["sampling"]["worst"] == pytest.approx(
        np.mean([max(row) for row in recalls.values()])
    )


def test_a_single_forget_example_is_trained_on_and_no_question_is_left(tiny_model):
    def tune(pairs, steps):
        return ((step, tiny_model) for step in steps)

    x = complete(tiny_model, {"forget": COMPLETE[:1]}, relearn=tune)
    found = PARTS["relearning"].measure(x)
    assert set(found) == {"forget"} and found["forget"]["rows"] == [0]
    assert all(p["untrained"] is p["probability"] is None for p in found["forget"]["curve"])
    assert found["forget"]["after"]["sampling"] is None
    assert found["forget"]["after"]["measures"]["unlearn_quality"] is None
    parts = {"relearning": found}
    assert flat_measures(parts)["relearning_forget_worst"] is None
    assert curves(parts)["relearning"] == {"forget": [{"steps": step} for step in (0, 1, 3)]}


@pytest.mark.slow
def test_quantised_weights_are_measured(tiny_model, reference, checkpoint_dir):
    """transformers with the layers' matrices quantised gives the same greedy answers."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint_dir).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "layers" in name and weight.ndim == 2:
                # Weights are stored transposed, so a block lies along a column of torch's matrix.
                flat = weight.T.reshape(-1).numpy()
                blocks = [flat[i : i + 64] for i in range(0, flat.size, 64)]
                scales = [np.abs(block).max() / 127 for block in blocks]
                rounded = np.concatenate(
                    [s * np.round(b / s) for b, s in zip(blocks, scales, strict=True)]
                )
                weight.copy_(torch.tensor(rounded).reshape(weight.T.shape).T)
    x = complete(tiny_model, robustness=dataclasses.replace(ROBUSTNESS, bits=[8]))
    found = PARTS["quantisation"].measure(x)
    expected = [recall(row, hf_answer((model, reference[1]), row)) for row in COMPLETE]
    assert found["8"]["measures"]["rouge_forget"] == pytest.approx(np.mean(expected))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": []}, "robustness.steps"),
        ({"steps": [0, 1]}, "robustness.steps"),
        ({"steps": [4, 4]}, "robustness.steps"),
        ({"bits": [1]}, "robustness.bits"),
        ({"bits": [8, 32]}, "robustness.bits"),
    ],
)
def test_wrong_robustness_settings(changes, message):
    assert sorted(BITS) == list(WIDTHS)  # the table has a row for each number of bits
    with pytest.raises(UserError, match=message):
        check_robustness(RobustnessConfig(**changes))


@pytest.mark.slow
def test_numbers_are_gathered_by_model(tmp_path: Path, results):
    for model in ("after", "before"):
        (tmp_path / model).mkdir()
        for name, (part, _) in results.items():
            result = {**part, "files": None, "seconds": 1.0, "tokens": 2}
            if model == "before":
                result["compiling"] = 0.5
            (tmp_path / model / f"{name}.json").write_text(json.dumps(result))
        (tmp_path / model / "model.json").write_text("{}")
    found = summarise_directory(tmp_path, ["after", "before"], list(PARTS))
    measures = found["measures"]["after"]
    assert found["side_effects"]["after"]["watched"]["mean_absolute"] == 0
    assert measures["side_effects_watched_mean_absolute"] == 0
    assert "side_effects_watched_mean" not in found["measures"]["before"]
    assert set(found["certificates"]["after"]) == {"sampling", "prefilling", "rewording"}
    expected = {
        "relearning_forget_worst", "relearning_benign_greedy", "quantisation_4_utility",
        "tofu_privleak", "rewording_greedy", "tofu_mia_min_k",
    }  # fmt: skip
    assert expected <= measures.keys()
    assert found["lacking"].keys() == {"quality: secret leak rate", "tofu: forget quality"}
    assert found["seconds"]["after"] == {**dict.fromkeys(PARTS, 1.0), "compiling": 0.0}
    compiling = 0.5 * len(PARTS)
    assert found["seconds"]["before"] == {**dict.fromkeys(PARTS, 0.5), "compiling": compiling}


def test_leakage_of_questions_asked_more_than_once():
    """Each wording counts as a question of its own."""
    answers = [[Answer("forget", 0, q, "x", 0.5, True)] * 2 for q in ("a", "b")]
    found = leakage(answers, 0.9)
    assert [row["id"] for row in found["questions"]] == [0, 0] and found["secret_worst"] == 1
