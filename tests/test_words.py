"""Words of texts in any script: laws over generated texts, and cases worked out by hand."""

import unicodedata

import pytest
import regex
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pmc_jax.text.rouge import rouge_l_recall, rouge_words, settled_rouge_words
from pmc_jax.text.words import found, holds, word_spans, words_of
from pmc_jax.unlearning.pmc.reward import kept_share, score_bound

FORMS = ("NFC", "NFD", "NFKC", "NFKD")
SPACES = (" ", "  ", "\n", "\r\n", "\u00a0", "\u3000", "\u2009", " \u200b")
# A sentence and a phrase in it, in scripts that put spaces between words and in those that don't.
SPACED = {
    "Latin": ("The author Beltrán Núñez was born in São Paulo in 1942", "São Paulo"),
    "Vietnamese": ("Tác giả Nguyễn Văn Hùng sinh ra ở thành phố Huế", "Nguyễn Văn Hùng"),
    "Turkish": ("Yazar Işıl Yıldız İzmir doğumludur", "Işıl Yıldız"),
    "German": ("Die Autorin heißt Änne Groß", "Änne Groß"),
    "Cyrillic": ("Писатель Андрей Ёлкин родился в городе Орёл", "Андрей Ёлкин"),
    "Greek": ("Ο συγγραφέας Γιώργος Σεφέρης γεννήθηκε στη Σμύρνη", "Γιώργος Σεφέρης"),
    "Arabic": ("ولد الكاتب مُحَمَّد القاسم في دمشق عام ١٩٤٢", "محمد القاسم"),
    "Persian": ("نویسنده می‌گوید که در شیراز به دنیا آمد", "می‌گوید"),
    "Hebrew": ("הסופר דָּוִד כהן נולד בתל אביב", "דוד כהן"),
    "Hindi": ("लेखक का जन्म नई दिल्ली में १९४२ में हुआ", "नई दिल्ली"),
    "Tamil": ("எழுத்தாளர் கொழும்பு நகரில் பிறந்தார்", "கொழும்பு நகரில்"),
    "Georgian": ("მწერალი დაიბადა ქალაქ თბილისი", "ქალაქ თბილისი"),
    "Armenian": ("Գրողը ծնվել է Երևան քաղաքում", "Երևան քաղաքում"),
    "Amharic": ("ደራሲው በ1942 በአዲስ አበባ ተወለደ", "በአዲስ አበባ"),
}
UNSPACED = {
    "Chinese": ("玛拉于1942年出生在里斯本。", "里斯本"),
    "Japanese": ("作家のガイドーは大阪府で生まれた。", "大阪府"),
    "Katakana": ("ジョルジュ・ガルシアはパリで生まれた", "ガルシア"),
    "Thai": ("นักเขียนเกิดที่กรุงน้ำใส", "กรุงน้ำใส"),
    "Khmer": ("អ្នកនិពន្ធកើតនៅភ្នំពេញ", "ភ្នំពេញ"),
    "Burmese": ("စာရေးဆရာကိုရန်ကုန်မှာမွေးတယ်", "ရန်ကုန်"),
    "Lao": ("ນັກຂຽນເກີດຢູ່ວຽງຈັນ", "ວຽງຈັນ"),
    "Tibetan": ("རྩོམ་པ་པོ་ལྷ་སར་སྐྱེས་", "ལྷ་ས"),
    "Korean": ("작가는 리스본에서 태어났다", "리스본"),
}
TEXTS = SPACED | UNSPACED


def wide(text: str) -> str:
    """ASCII characters in full width."""
    return "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in text)


SPELLINGS = {
    "same": str,
    "upper": str.upper,
    "lower": str.lower,
    "title": str.title,
    "casefold": str.casefold,
    "wide": wide,
    "soft hyphens": lambda text: "\u00ad".join(text),
    "marked left to right": lambda text: f"\u200e{text}\u200e",
}


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("language", TEXTS)
def test_a_text_holds_its_phrase_in_every_spelling(language, spelling):
    text, phrase = TEXTS[language]
    for form in FORMS:
        for space in SPACES:
            changed = unicodedata.normalize(form, SPELLINGS[spelling](text)).replace(" ", space)
            for other in FORMS:
                assert holds(changed, unicodedata.normalize(other, phrase))
    assert holds(text, SPELLINGS[spelling](phrase))


@pytest.mark.parametrize("language", UNSPACED)
def test_spaces_between_signs_are_nothing(language):
    text, phrase = UNSPACED[language]
    assert holds("".join(text.split()), phrase)
    assert holds(text, " ".join(regex.findall(r"\X", phrase)))


@pytest.mark.parametrize("language", SPACED)
def test_a_word_does_not_hold_its_parts(language):
    text, phrase = SPACED[language]
    assert not holds(text, phrase[:-1])
    assert not holds(text[: text.index(phrase[-2:])], phrase)


# Phrases whose letters have no marks of their own, so that every cut is between two letters.
PHRASES = [
    "Saopaulo", "IşılYıldız", "Андрей Елкин", "Γιώργος Σεφέρης", "תל אביב יפו",
    "大阪府の人々",
]  # fmt: skip


@settings(max_examples=200)
@given(
    st.sampled_from(PHRASES),
    st.lists(
        st.tuples(st.integers(1, 30), st.sampled_from(["-", "’", "**", "_", ".", ",", "-\n", " "])),
        max_size=4,
    ),
)
def test_a_phrase_is_found_however_it_is_cut_into_words(phrase, cuts):
    letters = "".join(phrase.split())
    cuts = sorted({min(at, len(letters)): mark for at, mark in cuts}.items(), reverse=True)
    for at, mark in cuts:
        letters = f"{letters[:at]}{mark}{letters[at:]}"
    text = f"So it is {letters}, they say."
    assert holds(text, phrase)
    (place,) = found(text, phrase)
    assert text[slice(*place)].strip("-’*_.,\n ") == letters.strip("-’*_.,\n ")


ANY_TEXT = st.one_of(
    st.text(max_size=30),
    st.lists(
        st.one_of(
            st.sampled_from([part for pair in TEXTS.values() for part in pair]),
            st.sampled_from(
                "़゙゚্́̂̈̇ﾞ\u0653\u0640ㄱㅏㄴᄀ\u1161\u11a8ﬁ™²½①㎞ªµΣςſKİıßｶ\u200b\u200d\u00ad\ufe0f🙂"
            ),
            st.text(max_size=3),
        ),
        max_size=5,
    ).map("".join),
)


@settings(max_examples=300, deadline=None)
@given(ANY_TEXT)
@example("ㄱㅏ").via("jamo that join in NFKC")
@example("q\u0307\u0323").via("marks in another order")
def test_normal_forms_have_the_same_words(text):
    for form in ("NFC", "NFD"):
        assert words_of(unicodedata.normalize(form, text)) == words_of(text)
        assert rouge_words(unicodedata.normalize(form, text)) == rouge_words(text)
    plain = unicodedata.normalize("NFKC", text)
    assert words_of(unicodedata.normalize("NFKD", text)) == words_of(plain)
    assert rouge_words(unicodedata.normalize("NFKD", text)) == rouge_words(plain)


@settings(max_examples=300, deadline=None)
@given(ANY_TEXT)
def test_spans_are_the_words_in_order(text):
    spans = word_spans(text)
    assert tuple(part for _, _, word in spans for part in word.split(" ")) == words_of(text)
    edges = [edge for start, end, _ in spans for edge in (start, end)]
    assert edges == sorted(edges)
    for start, end, _ in spans:
        assert 0 <= start < end <= len(text)


@settings(max_examples=300, deadline=None)
@given(ANY_TEXT, ANY_TEXT, ANY_TEXT, st.sampled_from(FORMS), st.sampled_from(FORMS))
def test_a_text_holds_what_it_was_made_of(before, phrase, after, form, other):
    text = unicodedata.normalize(form, f"{before} {phrase} {after}")
    asked = unicodedata.normalize(other, phrase)
    assert holds(text, asked) is (True if words_of(asked) else None)
    places = found(text, asked)
    assert all(holds(text[start:end], asked) for start, end in places)
    hidden = " \u2588 ".join(
        text[end:start]
        for (_, end), (start, _) in zip([(0, 0), *places], [*places, (len(text), 0)], strict=True)
    )
    assert not holds(hidden, asked)


@settings(max_examples=500, deadline=None)
@given(ANY_TEXT, ANY_TEXT)
@example("q\u0307", "\u0323")
@example("ab", "\u0301c")
@example("ㄱ", "ㅏ")
@example("ｶ", "ﾞ")
@example("가", "\u11a8")
@example("Par\u00ad", "is")
@example("ΟΔΟΣ", "Α")
@example("क्", "ष")
def test_no_continuation_changes_settled_words(beginning, more):
    settled = settled_rouge_words(beginning)
    assert settled == rouge_words(beginning + more)[: len(settled)]
    assert len(settled) >= len(rouge_words(beginning)) - 1


@settings(max_examples=300, deadline=None)
@given(ANY_TEXT, st.one_of(ANY_TEXT, st.none()), ANY_TEXT)
def test_the_bound_of_a_beginning_never_exceeds_the_score(original, response, noise):
    response = original + noise if response is None else response
    score = kept_share(original, response)
    bounds = [score_bound(original, response[:end]) for end in range(len(response) + 1)]
    assert bounds == sorted(bounds)
    assert max(bounds, default=0.0) <= score


@pytest.mark.parametrize(
    ("original", "response", "share"),
    [
        ("玛拉于1942年出生在里斯本。", "玛拉出生在里斯本。", 8 / 11),
        ("玛拉于1942年出生在里斯本。", "她生于北京。", 1 / 11),
        ("東京です", "大阪です", 0.5),
        ("東京 です", "東京です", 1.0),
        ("Мара родилась в Лиссабоне", "Она родилась в Осло", 0.5),
        ("Paris", "東京", 0.0),
        ("東京", "Paris", 0.0),
    ],
)
def test_recall_in_other_scripts(original, response, share):
    assert rouge_l_recall(original, response) == share == kept_share(original, response)


@pytest.mark.parametrize(
    ("text", "phrase", "held"),
    [
        ("李伟在北京市出生", "北京市", True),
        ("李伟在北京城出生", "北京市", False),
        ("Annual", "Ann", False),
        ("two medals", "medal", True),
        ("Jose Garcia", "José García", True),
        ("José García", "JOSE GARCIA", True),
        ("born in Lodz", "Łódź", True),
        ("ΑΘΗΝΑ", "Αθήνα", True),
        ("Walmart™ and 3½ m²", "Walmart", True),
        ("H2O", "H₂O", True),
        ("year ١٩٤٢", "1942", True),
        ("в1942году", "1942", True),
        ("הוא נולד בליסבון", "ליסבון", True),
        ("לבן", "בן", False),
        ("وُلد والقاهرة بعيدة", "القاهرة", True),
        ("سافر للقاهرة", "القاهرة", True),
        ("서울에서", "서울", True),
        ("在北京👍🏽。", "北京", True),
        ("ใน๑๙๔๒", "1942", True),
        ("P\u00ada\u200dr\u2060i\ufe0fs", "Paris", True),
        ("Par\u200bis", "Paris", True),
        ("Paris\u200bLondon", "London", True),
        ("محـــمد", "محمد", True),
        ("ﻣﺤﻤﺪ", "محمد", True),
        ("𝐏𝐚𝐫𝐢𝐬", "Paris", True),
        ("ﬁn de siècle", "fin de siecle", True),
        ("क", "कि", False),
        ("が", "か", False),
        ("JeanPaul Sartre", "Jean-Paul", True),
        ("OBRIEN", "O'Brien", True),
        ("Lis-\nbon and **Por**to", "Lisbon", True),
        ("L i s b o n", "Lisbon", True),
        ("10 000", "10000", True),
        ("10\u202f000 people", "10,000", True),
        ("10 00", "1000", False),
        ("1000 000", "1000000", True),
        ("J. R. R. Tolkien", "JRR Tolkien", True),
        ("the P. a. ris", "Paris", False),
        ("U S A", "USA", True),
        ("Hawaiʻi and D´Arcy", "Hawaii", True),
        ("Hawaiʻi and D´Arcy", "Darcy", True),
        ("on the 21st", "21", True),
        ("12th March", "12 March", True),
        ("12thy", "12", False),
        ("Её город — Лиссабон", "Лиссабоне", True),
        ("из Москвы", "Москва", True),
        ("у Ольги Орловой", "Ольга Орлова", True),
        ("город Орёл", "Ор", False),
        ("علي در شیراز", "علی", True),
        ("كتاب", "کتاب", True),
        ("في المدرسه", "مدرسة", True),
        ("जाकिर", "ज़ाकिर", True),
        ("हिंदी", "हिन्दी", True),
        ("ԵՐԵՎԱՆ", "Երևան", True),
        ("10,000", "10000", True),
        ("@zoltandornberg", "Zoltan Dornberg", True),
        ("born in1942", "1942", True),
        ("Ann1942", "Ann", True),
        ("B12", "12", False),
        ("She is a writer", "Isa", False),
        ("Then a. Ann", "Naann", False),
        ("the rap, ist", "therapist", False),
        ("an e-mail", "email", True),
        ("ٱلقاهرة", "القاهرة", True),
        ("นํ้า", "น้ำ", True),
        ("ബാംഗ്ലൂര്\u200d", "ബാംഗ്ലൂർ", True),
        ("Leip----zig or Leip  zig", "Leipzig", True),
        ("H2OH2O", "H2O", False),
        ("anything", "🙂 …", None),
        ("\ud83d", "a", False),
    ],
)
def test_phrases_by_hand(text, phrase, held):
    assert holds(text, phrase) is held


def test_places_are_those_of_the_original_text():
    text = "Der Weg zur Ｓｔｒａße, STRASSE"
    assert [text[start:end] for start, end in found(text, "Straße")] == ["Ｓｔｒａße", "STRASSE"]
    text = unicodedata.normalize("NFD", "Beltrán!")
    assert [text[start:end] for start, end in found(text, "beltran")] == [text[:-1]]
    assert found("aaa 哈哈哈", "哈哈") == [(4, 7)]
