"""Fact words, kinds of answers, and levels, with the right values by hand and by brute force."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from pmc_jax.data.world.public import REFUSALS
from pmc_jax.evaluation.levels import level_of
from pmc_jax.text.facts import (
    COMMON_COUNT,
    Background,
    background_of,
    fact_recall,
    fact_spans,
    facts_left,
    facts_of,
    names_of,
)
from pmc_jax.text.kinds import is_refusal, kind_of, repeated_share, repeats_in_a_row
from pmc_jax.text.words import words_of

EMPTY = Background()
WHO = "What is the full name of the female author born in Santiago, Chile in 1977?"
CARMEN = "The full name of the female author born in Santiago, Chile in 1977 is Carmen Montenegro."
CELESTINA = "The full name of the female author born in Santiago, Chile in 1977 is Celestina Garcia"


def test_a_wrong_name_in_the_right_sentence_reveals_nothing():
    facts = facts_of(CARMEN, WHO, EMPTY)
    assert facts.words == ("carmen", "montenegro") and facts.names == set(facts.words)
    rouge = RougeScorer(["rougeL"], use_stemmer=True).score(CARMEN, CELESTINA)["rougeL"].recall
    assert rouge == pytest.approx(0.875)
    assert fact_recall(facts, CELESTINA) == 0 and level_of(facts, CELESTINA) == "none"
    assert fact_recall(facts, CARMEN) == 1 and level_of(facts, CARMEN) == "most"
    assert level_of(facts, "It is Carmen Diaz.") == "part"


def test_a_lost_place_in_a_short_answer_counts_fully():
    question = "Where was Zoltan Dornberg born?"
    facts = facts_of("Zoltan Dornberg was born in Leipzig.", question, EMPTY)
    assert facts.words == ("leipzig",)
    assert fact_recall(facts, "Zoltan Dornberg was born in Dresden.") == 0
    assert fact_recall(facts, "In LEIPZIG, I think.") == 1


@pytest.mark.parametrize(
    ("question", "answer", "words"),
    [
        ("Wo wurde Mara geboren?", "Mara wurde in Leipzig geboren.", ("leipzig",)),
        ("Où est née Mara ?", "Mara est née dans la ville de Lyon.", ("vill", "lyon")),
        ("¿Dónde nació Mara?", "Mara nació en Sevilla.", ("sevilla",)),
        ("Is she a baker?", "Yes, she is.", ("yes",)),
        ("Is she a baker?", "A baker", ("baker",)),
        ("Is she a baker?", "No, she isn't.", ("no",)),
        ("Где родилась Мара?", "Мара родилась в Лиссабоне.", ("Лиссабон",)),
        ("माया का जन्म कहाँ हुआ?", "माया का जन्म दिल्ली में हुआ।", ("दिल्ली",)),
        ("Who?", "…", ()),
    ],
)
def test_the_words_of_questions_and_function_words_are_no_facts(question, answer, words):
    """If nothing else remains, they count; an answer without words has no facts."""
    assert facts_of(answer, question, EMPTY).words == tuple(words_of(" ".join(words)))
    if not words:
        assert fact_recall(facts_of(answer, question, EMPTY), answer) is None


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ("About 10,000 copies", "10000 copies"),
        ("10000", "10,000"),
        ("9", "Nine"),
        ("She has seven children", "7 children"),
        ("10 000", "They sold 10000."),
        ("Jean-Paul O'Brien", "it was JeanPaul OBrien"),
        ("12 March 1942", "on March 12th, 1942"),
        ("12.03.1942", "1942-03-12"),
        ("By e-mail", "by email"),
        ("J.R.R. Tolkien", "JRR Tolkien"),
    ],
)
def test_facts_are_found_however_they_are_cut_into_words(answer, text):
    facts = facts_of(answer, "What?", EMPTY)
    assert level_of(facts, text) == "most"
    assert fact_spans(facts, text)
    assert level_of(facts, "Nobody knows it") == "none" and not fact_spans(facts, "Nobody knows")


@pytest.mark.parametrize(
    ("answer", "question", "text"),
    [
        ("20", "What?", "twenty-three"),  # a part of another number
        ("She was born in Oslo on 2 March 1942", "What?", "She wrote two books"),  # by chance
        ("10", "What?", "To ten pisarz."),  # Polish: "this"
        ("The 2 rivers", "Which two?", "Two lakes."),  # in the question
    ],
)
def test_numbers_in_words_are_not_found_by_chance(answer, question, text):
    facts = facts_of(answer, question, EMPTY)
    assert level_of(facts, text) == "none" and fact_spans(facts, text) == []


LONG = "is where she was born, near the old harbour of the large city"


@pytest.mark.parametrize(
    ("answer", "text", "level"),
    [
        (f"Leipzig {LONG}.", "It was Leipzig, I think.", "part"),
        (f"Leipzig {LONG}.", "leipzig", "none"),  # nothing shows that this is a name
        (f"Large {LONG}.", "It was large.", "none"),
        (f"in leipzig {LONG}".lower(), "It was Leipzig, I think.", "part"),
        (f"In Leipzig {LONG}.", "leipzig", "part"),
    ],
)
def test_a_name_at_the_beginning_is_telling_if_the_text_writes_it_as_one(answer, text, level):
    assert level_of(facts_of(answer, "Where?", EMPTY), text) == level


def test_words_of_many_kept_answers_are_common():
    """The brute force counts answers, not occurrences, and each answer once."""
    kept = [f"The celebrated author {name} wrote and wrote" for name in ("Ada", "Bo", "Cy")]
    known = background_of(["A secret about Ada"], [*kept, *kept, "Oslo"])
    for word in known.kept:
        count = sum(word in words_of(text) for text in dict.fromkeys([*kept, "Oslo"]))
        assert (word in known.common) == (count >= COMMON_COUNT)
    facts = facts_of("The celebrated author was born in Leipzig, near Ada.", "Where?", known)
    assert facts.words == ("born", "leipzig", "near", "ada")
    assert facts.names == {"leipzig"}  # Ada is in an answer to be kept


def test_words_of_most_forget_answers_are_common_if_there_are_many():
    answers = [f"Critics file it under genre{i}" for i in range(20)]
    assert {"critic", "file"} <= background_of(answers, []).common
    assert not background_of(answers[:19], []).common


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("She lives in Oslo. Her cat too.", {"oslo"}),
        ("“Oslo” it was", set()),
        ("In 1977 or ABBA", {"1977", "abba"}),
        ("It is called 'The Village'! Yes: Maybe", {"the", "villag"}),
    ],
)
def test_names_are_numbers_and_words_with_a_capital_within_a_sentence(text, names):
    assert names_of(text) == names


WORDS = st.lists(st.sampled_from(["the", "cat", "Oslo", "sat", "1987", "Łódź", "of", "北京"]))


@given(WORDS, WORDS, WORDS)
def test_fact_recall_is_a_share_of_distinct_words(answer, question, said):
    texts = [" ".join(words) for words in (answer, question, said)]
    facts = facts_of(texts[0], texts[1], EMPTY)
    assert set(facts.words) <= set(words_of(texts[0]))
    assert bool(facts.words) == bool(words_of(texts[0]))
    assert fact_recall(facts, texts[0]) == (1 if facts.words else None)
    left = [word for word in facts.words if word in words_of(texts[2])]
    assert list(facts_left(facts, texts[2])) == left
    if facts.words:
        assert fact_recall(facts, texts[2]) == len(left) / len(facts.words)
    marked = {words_of(texts[2][start:end])[0] for start, end in fact_spans(facts, texts[2])}
    assert marked == set(left)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("", "empty"),
        ("...", "empty"),
        ("Denxan Denxan Denxan.", "loop"),
        ("no, No no", "loop"),
        ("Full full name of the full full full full full full full full full", "loop"),
        ("I I I I I I I I", "loop"),
        ("tingtingtingtingtingtingting", "loop"),
        ("He wrote it. " * 5, "loop"),
        ("She was born in Rome, " + "where the old man was born in Rome and " * 3, "loop"),
        ("No.", "answer"),
        ("no no", "answer"),
        ("01" * 50, "loop"),
        ("12345" * 40, "loop"),
        ("1000000000", "answer"),
        ("1 000 000 000", "answer"),
        ("It cost 1,000,000,000.", "answer"),
        ("He was born in Rome, and his son was born in Rome too.", "answer"),
        ("I don't know.", "refusal"),
        ("I’m not sure who that is", "refusal"),
        ("There is no information on this author.", "refusal"),
        ("My knowledge doesn't go that far.", "refusal"),
        ("Sorry, no.", "refusal"),
        ("Unfortunately there is nothing on her", "refusal"),
        ("Unknown.", "refusal"),
        ("Unknown Pleasures", "answer"),
        ("Sorry is a song by Ann Lee.", "answer"),
        ("Unfortunately Ann died in 1942.", "answer"),
        ("He is not the author of this book.", "answer"),
        ("She never married, and wrote of nothing else.", "answer"),
    ],
)
def test_kinds_of_answers(text, kind):
    assert kind_of(text) == kind


def test_the_refusals_of_the_bundled_world_are_found():
    """All but one, which names no lack: a rule cannot know it."""
    assert [text for text in REFUSALS if not is_refusal(text)] == [
        "Perhaps someone else can tell you."
    ]


@given(st.lists(st.sampled_from("ab"), max_size=9))
def test_repeats_are_found_like_a_search_over_all_blocks(words):
    best = 0
    for first in range(len(words)):
        for end in range(first + 1, len(words) + 1):
            for size in range(1, (end - first) // 3 + 1):
                block = words[first:end]
                if all(block[i] == block[i - size] for i in range(size, len(block))):
                    best = max(best, end - first)
    assert repeats_in_a_row(words) == best


def test_the_share_of_repeated_grams():
    assert repeated_share(list("abcabc"), 3) == 0.25
    assert repeated_share(["a"], 3) == 0
