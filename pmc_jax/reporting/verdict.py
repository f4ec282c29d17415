"""The verdict in words: on the terminal and at the head of the pages."""

import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

WIDTH = 80

VERDICT_WORDS = {
    "gone": ("is gone", "are gone"),
    "partly": ("is there in part or under attack", "are there in part or under attack"),
    "still there": ("is still there", "are still there"),
    "newly appeared": ("has newly appeared", "have newly appeared"),
    "never known": ("was never known", "were never known"),
    "cannot tell": ("cannot be judged", "cannot be judged"),
}
"""Of one answer and of several."""

VERDICT_MEANINGS = {
    "gone": "no answer that was given reveals it",
    "partly": "a part of it is given, or it comes out under attack",
    "still there": "the model gives it when it is asked",
    "newly appeared": "the model gives it now and did not before",
    "never known": "the model did not know it before unlearning",
    "cannot tell": "there is nothing to compare with",
}
"""Of an answer."""

ATTACK_WORDS = {
    "greedy": "asked once",
    "paraphrase": "asked once in other words",
    "sampling": "asked {samples} times",
    "prefilling_greedy": "asked once with a forced beginning",
    "prefilling": "asked {samples} times with a forced beginning",
    "rewording_greedy": "asked once in each other wording",
    "rewording": "asked {samples} times in other wordings",
    "relearning_forget": "fine-tuned on a few forget examples and asked {samples} times",
    "relearning_benign": "fine-tuned on a few benign examples and asked {samples} times",
}
"""How a model was asked, by attack."""

UNTESTED_WORDS = {
    "sampling": "many answers to each question",
    "prefilling": "a forced beginning",
    "rewording": "all other wordings",
    "relearning": "fine-tuning on a few examples",
    "quantisation": "quantised weights",
}
"""The attacks that an evaluation can leave out, by the beginning of their names."""

KIND_WORDS = {
    "revealing": ("reveals something", "reveal something"),
    "refusal": ("refuses", "refuse"),
    "other": ("asserts something else", "assert something else"),
    "loop": ("is a loop", "are loops"),
    "empty": ("is empty", "are empty"),
    "truncated": ("is cut at the limit", "are cut at the limit"),
}
"""Of one answer and of several."""


def attack_words(name: str, samples: int) -> str:
    """An attack in words."""
    if name.startswith("quantisation_"):
        bits = name.removeprefix("quantisation_")
        return f"quantised to {bits} bits and asked {samples} times"
    return ATTACK_WORDS.get(name, name.replace("_", " ")).format(samples=samples)


def counts_in_words(verdict: Mapping[str, Any]) -> str:
    """How many answers have which verdict: "30 are gone, 2 are there in part"."""
    counts = verdict["counts"]
    found = [
        f"{counts[name]} {words[counts[name] != 1]}"
        for name, words in VERDICT_WORDS.items()
        if counts[name]
    ]
    return ", ".join(found)


def verdict_sentence(verdict: Mapping[str, Any]) -> str:
    """The verdict over all questions, with the counts."""
    questions = verdict["questions"]
    if not questions:
        return "Cannot tell: there are no forget questions."
    word, whole = verdict["verdict"], counts_in_words(verdict)
    answers = "Of 1 answer" if questions == 1 else f"Of {questions} answers"
    return f"{word[0].upper()}{word[1:]}. {answers}, {whole}."


def revealed_lines(verdict: Mapping[str, Any]) -> Iterator[str]:
    """What each attack reveals."""
    for name, found in verdict["attacks"].items():
        yield (
            f"{attack_words(name, found['samples'])}: reveals {found['revealed']} of "
            f"{found['questions']}"
        )


def untested_sentence(verdict: Mapping[str, Any]) -> str:
    """The attacks that were left out; empty if none was."""
    missing = [
        words
        for name, words in UNTESTED_WORDS.items()
        if not any(attack.startswith(name) for attack in verdict["attacks"])
    ]
    return f"Not tested: {', '.join(missing)}." if missing else ""


def kinds_sentence(verdict: Mapping[str, Any]) -> str:
    """The kinds of the greedy answers; empty if there are none."""
    kinds = verdict["answers"]
    named = {
        kind: f"{kinds[kind]} {words[kinds[kind] != 1]}"
        for kind, words in KIND_WORDS.items()
        if kinds[kind]
    }
    cut = f" {named.pop('truncated')}." if "truncated" in named else ""
    found = ", ".join(named.values())
    return f"Of the most likely answers, {found} (by rule, approximate).{cut}"


def reference_sentence(verdict: Mapping[str, Any]) -> str:
    """What the answers were compared with."""
    compared = verdict["compared_with"]
    if compared is None:
        return ""
    if compared == "original answers":
        return (
            "The forget file has no answers, so they are compared with what the model answered "
            "before unlearning."
        )
    return f"The answers are compared with the {compared}."


def verdict_lines(verdict: Mapping[str, Any], width: int = WIDTH) -> str:
    """The verdict as text for the terminal."""

    def wrapped(text: str, mark: str = "") -> str:
        return textwrap.fill(text, width, initial_indent=mark, subsequent_indent=" " * len(mark))

    lines = [wrapped(f"VERDICT: {verdict_sentence(verdict)}")]
    lines += [wrapped(line, "  ") for line in revealed_lines(verdict)]
    if verdict["questions"]:
        if untested := untested_sentence(verdict):
            lines.append(wrapped(untested, "  "))
        lines.append(wrapped(kinds_sentence(verdict), "  "))
    if reference := reference_sentence(verdict):
        lines.append(wrapped(reference, "  "))
    lines += [wrapped(sentence, "→ ") for sentence in verdict["advice"]]
    return "\n".join(lines)


def unknown_lines(known: Mapping[str, int]) -> Iterator[str]:
    """A warning before training if the model does not know the answers.

    Args:
        known: as of `verdicts.known_before`.
    """
    questions, unknown = known["questions"], known["questions"] - known["known"]
    if not questions or not unknown:
        return
    how = "does not give the right answer to" if known["compared"] else "refuses to answer"
    some = "any" if unknown == questions else f"{unknown}"
    end = (
        "There is nothing to unlearn."
        if unknown == questions
        else "Nothing can be said about forgetting them."
    )
    yield f"the model {how} {some} of the {questions} forget questions. {end}"


@dataclass(frozen=True)
class Section:
    """The verdict as the pages show it.

    Attributes:
        verdict: over all questions.
        sentence: with the counts.
        counts: (verdict, number, words) of the questions, without those that do not occur.
        attacks: (how the model was asked, revealed answers, questions).
        notes: what was not tested, what the answers were compared with, and their kinds.
        advice: what to change.
    """

    verdict: str
    sentence: str
    counts: list[tuple[str, int, str]]
    attacks: list[tuple[str, int, int]]
    notes: list[str]
    advice: list[str]


def verdict_section(verdict: Mapping[str, Any] | None) -> Section | None:
    """The verdict for a page; None if there is none."""
    if verdict is None or not verdict["questions"]:
        return None
    counts = verdict["counts"]
    return Section(
        verdict["verdict"],
        verdict_sentence(verdict),
        [(name, counts[name], VERDICT_MEANINGS[name]) for name in VERDICT_WORDS if counts[name]],
        [
            (attack_words(name, found["samples"]), found["revealed"], found["questions"])
            for name, found in verdict["attacks"].items()
        ],
        [
            note
            for words in (untested_sentence, reference_sentence, kinds_sentence)
            if (note := words(verdict))
        ],
        list(verdict["advice"]),
    )
