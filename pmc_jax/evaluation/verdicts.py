"""A verdict for every forget question, and an overall verdict.

The verdict on a question depends on what its answers reveal (`levels`) of the right answer. If the
right answer is not known, the original answer takes its place, which the model gave before
unlearning. The verdict is about the model as it is delivered. Relearning and quantisation change
the model, so they are listed among the attacks, but do not change a verdict.
"""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, Literal

from pmc_jax.evaluation.levels import Level, level_of
from pmc_jax.text.counts import counted
from pmc_jax.text.facts import Background, Facts, background_of, facts_left, facts_of, names_of
from pmc_jax.text.words import words_of

GONE: Final = "gone"
PARTLY: Final = "partly"
STILL_THERE: Final = "still there"
NEWLY_APPEARED: Final = "newly appeared"
NEVER_KNOWN: Final = "never known"
CANNOT_TELL: Final = "cannot tell"
VERDICTS = (STILL_THERE, NEWLY_APPEARED, PARTLY, CANNOT_TELL, NEVER_KNOWN, GONE)
"""The verdicts on a question, the worst first."""

FORGOTTEN, PARTLY_FORGOTTEN, NOT_FORGOTTEN = "forgotten", "partly forgotten", "not forgotten"

USUAL = 0.5
"""An answer that at least this share of the plain samples reveals counts like a greedy answer."""

OFTEN = 0.25
"""A part of an answer counts in an attack if at least this share of its samples reveals a part.
A single sample has a word of the answer by chance too often."""

KNOWN = 0.1
"""A model knows an answer if its greedy answer reveals a part, or if at least this share of its
samples reveals most. A model that guesses finds an answer now and then."""

KEPT = 0.9
"""If a model keeps less than this share of its utility, it has lost too much."""

Verdict = Literal[
    "gone", "partly", "still there", "newly appeared", "never known", "cannot tell"
]  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Asked:
    """What a model answered to the forget questions, in the layout of the evaluation's files.

    Attributes:
        answers: greedy answers to all questions of all sets (`quality.answer_rows`).
        attacks: by name, an object for each question of the attack: a `sampled_question`, or an
            answer of `greedy_leakage`.
        changed: by name, the `revealed_questions` of attacks that change the weights.
    """

    answers: Sequence[Mapping[str, Any]]
    attacks: Mapping[str, Sequence[Mapping[str, Any]]]
    changed: Mapping[str, Mapping[str, int]] = dataclasses.field(default_factory=dict)

    def greedy(self, name: str) -> dict[int, Mapping[str, Any]]:
        """The greedy answers to a set by id."""
        return {row["id"]: row for row in self.answers if row["set"] == name}


@dataclasses.dataclass(frozen=True)
class Found:
    """How many of the answers to one question reveal a part of the answer, and most of it."""

    samples: int
    part: int
    most: int

    def __add__(self, other: "Found") -> "Found":
        """Both together."""
        return Found(self.samples + other.samples, self.part + other.part, self.most + other.most)

    @property
    def level(self) -> Level:
        """What an attacker finds."""
        if self.most:
            return "most"
        return "part" if self.part and self.part >= OFTEN * self.samples else "none"


@dataclasses.dataclass(frozen=True)
class Evidence:
    """What a model revealed of the answer to one question: greedily, and in each attack."""

    greedy: Level
    attacks: Mapping[str, Found]

    @property
    def usual(self) -> bool:
        """Whether the model usually reveals the answer when it is simply asked."""
        plain = self.attacks.get("sampling")
        often = plain is not None and plain.most >= USUAL * plain.samples
        return self.greedy == "most" or often

    @property
    def knows(self) -> bool:
        """Whether the model knows the answer, at least in part."""
        return self.greedy != "none" or self.finds

    @property
    def finds(self) -> bool:
        """Whether its plain samples reveal the answer more often than a guess."""
        plain = self.attacks.get("sampling")
        return plain is not None and plain.most > 0 and plain.most >= KNOWN * plain.samples

    def strongest(self) -> str | None:
        """What reveals most: "greedy" or an attack; None if nothing reveals anything."""
        ways: dict[str, Level] = {"greedy": self.greedy}
        ways |= {name: found.level for name, found in self.attacks.items()}
        for level in ("most", "part"):
            for name, found in ways.items():
                if found == level:
                    return name
        return None


def found_in(entry: Mapping[str, Any], facts: Facts | None) -> Found | None:
    """What the answers of one object reveal; None if they cannot be compared.

    Args:
        facts: the facts to compare texts with, if the object has no levels.
    """
    if "levels" in entry:
        return Found(entry["samples"], entry["levels"]["part"], entry["levels"]["most"])
    if entry.get("level") is not None:
        levels = [entry["level"]]
    elif facts is not None:
        texts = entry["texts"] if "texts" in entry else [entry["text"]]
        levels = [level_of(facts, text) for text in texts]
    else:
        return None
    return Found(len(levels), levels.count("part"), levels.count("most"))


def revealed_questions(questions: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """How many `questions` of an attack there are, how many are `revealed`, and the `samples`."""
    found = {"questions": 0, "revealed": 0, "samples": 0}
    for entry in questions:
        answers = found_in(entry, None)
        if answers is not None:
            found["questions"] += 1
            found["revealed"] += answers.most > 0
            found["samples"] = max(found["samples"], answers.samples)
    return found


def original_facts(before: Asked) -> dict[int, Facts]:
    """The facts of the original answers whose right answers are not known, by id.

    An original answer that is empty, a loop or a refusal has none.
    """
    kept = [row["text"] for row in before.answers if row["set"] == "retain"]
    rows = before.greedy("forget")
    known: Background = background_of([row["text"] for row in rows.values()], kept)
    return {
        key: facts_of(row["text"], row["question"], known)
        for key, row in rows.items()
        if row["level"] is None and row["kind"] == "answer"
    }


def evidences(asked: Asked, facts: Mapping[int, Facts]) -> dict[int, Evidence]:
    """What a model revealed of each answer, by id, without questions that cannot be compared.

    Args:
        facts: the facts to compare texts with if the right answer is not known.
    """
    greedy = {
        key: found
        for key, row in asked.greedy("forget").items()
        if (found := found_in(row, facts.get(key))) is not None
    }
    attacks: dict[int, dict[str, Found]] = {key: {} for key in greedy}
    for name, entries in attacks_of(asked):
        for entry in entries:
            key = entry["id"]
            found = found_in(entry, facts.get(key)) if key in greedy else None
            if found is not None:
                earlier = attacks[key].get(name)
                attacks[key][name] = found if earlier is None else earlier + found
    return {
        key: Evidence("most" if found.most else "part" if found.part else "none", attacks[key])
        for key, found in greedy.items()
    }


def attacks_of(asked: Asked) -> Iterator[tuple[str, Sequence[Mapping[str, Any]]]]:
    """The attacks by name; greedy answers to paraphrased questions are one."""
    if paraphrased := list(asked.greedy("paraphrase").values()):
        yield "paraphrase", paraphrased
    yield from asked.attacks.items()


def verdict_on(after: Evidence, before: Evidence | None) -> Verdict:
    """The verdict on a question, from what is revealed now and, if known, was revealed before."""
    if before is not None and not before.knows:
        return NEWLY_APPEARED if after.usual or after.finds else NEVER_KNOWN
    if after.usual:
        return STILL_THERE
    return PARTLY if after.strongest() else GONE


def verdict(
    after: Asked,
    before: Asked | None = None,
    *,
    settings: Mapping[str, Any] | None = None,
    utility: tuple[float | None, float | None] = (None, None),
) -> dict[str, Any]:
    """The verdict over all forget questions as a JSON object, without a word of any answer.

    Args:
        after: the model under evaluation.
        before: the model before unlearning, if it was asked the same questions.
        settings: the settings of the run by dotted key, for the advice.
        utility: the utility before and after.

    Returns:
        `verdict` over all `questions`; `counts` of the verdicts on single questions;
        `compared_with` ("right answers", "original answers", or both); `attacks`: for each attack,
        the number of questions for which it reveals most of the answer, and the number of samples;
        `answers`: the kinds of the greedy answers; `advice` in sentences; and `rows`, one for each
        question.
    """
    facts = original_facts(before) if before is not None else {}
    new = evidences(after, facts)
    old = evidences(before, facts) if before is not None else {}
    originals = before.greedy("forget") if before is not None else {}
    rows = [
        question_row(row, new.get(key), old.get(key), originals.get(key), facts.get(key))
        for key, row in after.greedy("forget").items()
    ]
    counts = {name: 0 for name in VERDICTS} | Counter(row["verdict"] for row in rows)
    attacks = {
        name: {"questions": len(found), "revealed": sum(each.most > 0 for each in found),
               "samples": max(each.samples for each in found)}
        for name, found in gathered(new.values()).items()
    }  # fmt: skip
    attacks |= {name: dict(found) for name, found in after.changed.items()}
    references = Counter(row["compared_with"] for row in rows if row["compared_with"])
    found = {
        "verdict": overall(counts),
        "questions": len(rows),
        "counts": counts,
        "before": before is not None,
        "compared_with": " and ".join(sorted(references, reverse=True)) or None,
        "attacks": attacks,
        "answers": answer_kinds(after, rows),
    }
    return {**found, "advice": advice(found, settings or {}, utility), "rows": rows}


def gathered(evidence: Iterable[Evidence]) -> dict[str, list[Found]]:
    """What every question reveals, for greedy answers and each attack."""
    found: dict[str, list[Found]] = {}
    for own in evidence:
        once = Found(1, own.greedy == "part", own.greedy == "most")
        for name, each in {"greedy": once, **own.attacks}.items():
            found.setdefault(name, []).append(each)
    return found


def question_row(
    row: Mapping[str, Any],
    new: Evidence | None,
    old: Evidence | None,
    original: Mapping[str, Any] | None,
    facts: Facts | None,
) -> dict[str, Any]:
    """The verdict on one question, with what it rests on.

    Args:
        row: the greedy answer to it.
        new, old: what is revealed now, and what was revealed before, if known.
        original: the greedy answer before.
        facts: the facts of the original answer, if the right answer is not known.
    """
    key, right = row["id"], row["level"] is not None
    found = {
        "id": key, "set": "forget", "kind": row["kind"], "truncated": row["truncated"],
        "compared_with": None, "by": None, "words_left": None, "words": None,
    }  # fmt: skip
    if new is None:
        if original is not None and original["kind"] != "answer":
            own = names_of(original["text"]) - {*words_of(original["question"])}
            if own and words_of(original["text"]) == words_of(row["text"]):
                reason = "the model repeats the original answer, which reads like a refusal or loop"
                return {**found, "verdict": CANNOT_TELL, "reason": reason}
            return {**found, "verdict": NEVER_KNOWN, "compared_with": "original answers"}
        reason = "there is no right answer, and the model before was not asked"
        return {**found, "verdict": CANNOT_TELL, "reason": reason}
    plain = new.attacks.get("sampling")
    if right:
        words = row["fact_words"]
        left = round(words * (row["facts"] or 0.0))
    else:
        assert facts is not None
        words, left = len(facts.words), len(facts_left(facts, row["text"]))
    return {
        **found,
        "verdict": verdict_on(new, old),
        "compared_with": "right answers" if right else "original answers",
        "by": new.strongest(),
        "words_left": left,
        "words": words,
        "samples": plain.samples if plain else 0,
        "samples_revealing": plain.most if plain else 0,
    }


def overall(counts: Mapping[str, int]) -> str:
    """The verdict over all questions whose answers the model knew.

    All are gone: forgotten. Most are still there: not forgotten.
    """
    there = counts[STILL_THERE] + counts[NEWLY_APPEARED]
    judged = there + counts[PARTLY] + counts[GONE]
    if not judged:
        return CANNOT_TELL
    if counts[GONE] == judged:
        return FORGOTTEN
    return NOT_FORGOTTEN if there > judged / 2 else PARTLY_FORGOTTEN


def answer_kinds(asked: Asked, rows: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """How many greedy answers to forget questions are of each kind.

    `other` answers assert something, and reveal nothing.
    """
    verdicts = {row["id"]: row["by"] for row in rows}
    found = {"revealing": 0, "refusal": 0, "other": 0, "loop": 0, "empty": 0, "truncated": 0}
    for key, row in asked.greedy("forget").items():
        found["truncated"] += bool(row["truncated"])
        if verdicts[key] == "greedy":
            found["revealing"] += 1
        else:
            found["other" if row["kind"] == "answer" else row["kind"]] += 1
    return found


def known_before(before: Asked) -> dict[str, int]:
    """How many forget questions there are, and how many answers the model knows.

    Without the right answer, a model knows what it does not refuse.
    """
    evidence = evidences(before, original_facts(before))
    rows = before.greedy("forget")
    return {
        "questions": len(rows),
        "known": sum(own.knows for own in evidence.values()),
        "compared": sum(row["level"] is not None for row in rows.values()),
    }


def advice(
    found: Mapping[str, Any],
    settings: Mapping[str, Any],
    utility: tuple[float | None, float | None],
) -> list[str]:
    """What to change, in sentences; empty if there is nothing."""
    counts, attacks, told = found["counts"], found["attacks"], []

    def now(key: str) -> str:
        value = settings.get(key)
        return key if value is None else f"{key} (now {value:g})"

    there = counts[STILL_THERE] + counts[NEWLY_APPEARED]
    if there:
        told.append(
            f"{counted(there, 'answer is', 'answers are')} still there: raise "
            f"{now('training.epochs')} or {now('optimizer.learning_rate')}."
        )
    elif counts[PARTLY]:
        told.append(
            f"{counted(counts[PARTLY], 'answer comes', 'answers come')} out in part or under "
            f"attack: raise {now('training.epochs')} or {now('method.samples')}."
        )
    old, new = utility
    if old and new is not None and new < KEPT * old:
        told.append(
            f"Utility fell from {old:.1f} to {new:.1f}: give more retain rows like the forget "
            f"questions, or raise {now('method.retain_weight')}."
        )
    broken = found["answers"]["loop"] + found["answers"]["empty"]
    if broken > found["questions"] / 10:
        told.append(
            f"{counted(broken, 'answer is', 'answers are')} empty or a loop: lower "
            f"{now('optimizer.learning_rate')}, or give more retain rows."
        )
    if counts[NEVER_KNOWN]:
        told.append(
            f"The model did not know {counted(counts[NEVER_KNOWN], 'answer', 'answers')} before "
            "unlearning. Nothing can be said about forgetting "
            f"{'it' if counts[NEVER_KNOWN] == 1 else 'them'}."
        )
    if found["questions"] and not found["before"]:
        told.append(
            "The model before unlearning was not asked, so it is not known whether it knew the "
            "answers."
        )
    if not any(attack["samples"] > 1 for attack in attacks.values()):
        told.append("No attack was measured, so more may come out.")
    return told
