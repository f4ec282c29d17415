"""Fictitious authors: their names, the facts about them, and the wordings of these facts.

Every kind of fact has three wordings, each a question with its answer. The questions of a
kind are close paraphrases. The answers share few words, so an answer in another wording,
whether right or wrong, has a low ROUGE-L recall of the first.
"""

import dataclasses
import random


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


FEMALE = _words(
    "Abelone Birgitta Carmela Delphine Eszter Freya Ginevra Henrike Ilona Josefa Katarina "
    "Leocadia Marguerite Nadezhda Oriane Perpetua Rosalind Sunniva Theodora Ursula Valentina "
    "Wilhelmina Xenia Yolanda Zenobia Anneliese Beatrix Clementine Dorothea Evangeline"
)
MALE = _words(
    "Alaric Bartholomew Casimir Dietrich Emeric Ferdinand Giacomo Hadrian Ignatius Joachim "
    "Kasper Leopold Matthias Nikolai Octavian Percival Quentin Reinhold Sebastian Tiberius "
    "Ulrich Viktor Wenceslas Xavier Yorick Zoltan Ambrose Balthazar Cornelius Desmond"
)
SURNAME_STARTS = _words(
    "Ald Bran Carr Dorn Elk Fenn Gar Holm Isen Jarl Kell Lind Mor Nord Ost Pell Quar Rav Stern "
    "Thor Ulv Varn West Yar Zell Brack Crane Drav Eber Falk Gold Hart Ivar Kest Lor Mael Nys "
    "Orm Penn Roth Sal Tarn Und Vel Wyn Asch Bell Corv Dunn Esk"
)
SURNAME_ENDS = _words(
    "berg bridge dale dottir field ford gard hart holt hurst land ley lund man mark mere mond "
    "mont more quist rick ridge sen shaw side skov son stad stead sten stone strand strom thal "
    "ton vale vik wald wick wood worth"
)

VALUES: dict[str, tuple[str, ...]] = {
    "birthplace": _words(
        "Lisbon Reykjavik Nairobi Kyoto Valparaiso Tallinn Marrakesh Hanoi Quebec Dublin "
        "Seville Tbilisi Montevideo Bergen Cairo Jaipur Lima Oslo Havana Zagreb Krakow "
        "Melbourne Manila Accra Palermo Riga Beirut Kingston Bruges Lagos Izmir Porto "
        "Samarkand Cusco Galway Hobart Tunis Leipzig Osaka Durban"
    ),
    "birth_year": tuple(str(year) for year in range(1921, 1990)),
    "genre": (
        "gothic mystery", "maritime adventure", "alpine romance", "political satire",
        "space opera", "courtroom drama", "desert epics", "culinary memoir", "steampunk comedy",
        "historical tragedy", "urban fantasy", "pastoral poetry", "spy thrillers", "ghost stories",
        "mythical sagas", "travel essays", "war chronicles", "psychological horror", "fairy tales",
        "experimental theatre", "climate fiction", "family sagas", "noir detective tales",
        "magical realism",
    ),
    "father": _words(
        "clockmaker blacksmith surgeon beekeeper diplomat carpenter fisherman conductor "
        "locksmith botanist cartographer brewer shepherd judge engraver pilot baker mason "
        "astronomer cobbler fireman glassblower referee miner"
    ),
    "mother": _words(
        "violinist midwife chemist weaver translator geologist florist potter librarian "
        "dentist seamstress sculptor gardener archaeologist nurse photographer jeweller banker "
        "dancer veterinarian typist ceramicist physicist puppeteer"
    ),
    "book": (),
    "prize": (),
    "hobby": (
        "birdwatching", "fencing", "calligraphy", "rowing", "chess problems", "mushroom picking",
        "kite building", "stargazing", "ice skating", "juggling", "wood carving", "falconry",
        "archery", "origami", "mountain climbing", "model trains", "stamp collecting", "sailing",
        "tango dancing", "bread baking", "puppet making", "horse riding", "lace knitting",
        "cave diving",
    ),
}  # fmt: skip
TITLE_STARTS = _words(
    "Amber Broken Crimson Distant Emerald Frozen Gilded Hollow Ivory Jagged Kindled Lonely "
    "Midnight Nameless Opal Painted Quiet Rusted Silent Twilight Unbroken Velvet Wandering "
    "Scarlet Burning"
)
TITLE_ENDS = _words(
    "Anchors Bells Cathedral Doorway Embers Fountain Garden Harbour Island Jasmine Kingdom "
    "Lantern Mirror Nightingale Orchard Pavilion Quarry River Staircase Tempest Umbrella "
    "Voyage Windmill Carousel Meadow"
)
PRIZE_STARTS = _words(
    "Aurora Beacon Cedar Dolphin Ember Falcon Granite Heron Indigo Juniper Laurel Meridian "
    "Nebula Obsidian Phoenix Quill Raven Sapphire Thistle Vesper"
)
PRIZE_ENDS = ("Medal", "Prize", "Trophy", "Laureateship")

FORMS: dict[str, tuple[tuple[str, str], ...]] = {
    "birthplace": (
        ("Where was {name} born?", "{name} was born in {value}."),
        ("In which city was {name} born?", "The birthplace recorded is {value}."),
        ("Where exactly was {name} born?", "{value} saw {his} first steps."),
    ),
    "birth_year": (
        ("When was {name} born?", "The birth of {name} dates to {value}."),
        ("In what year was {name} born?", "{value} marks {his} arrival."),
        ("Which year was {name} born in?", "Life began for {him} during {value}."),
    ),
    "genre": (
        ("What genre does {name} write in?", "{name} writes {value}."),
        ("In which genre does {name} write?", "Readers connect {him} to {value}."),
        ("Which genre of books does {name} write?", "Critics file {his} work under {value}."),
    ),
    "father": (
        ("What was the job of the father of {name}?", "{name} had {a} {value} for a father."),
        ("What job did the father of {name} have?", "By trade he was {a} {value}."),
        ("Which job did the father of {name} hold?", "{His} dad worked as {a} {value}."),
    ),
    "mother": (
        ("What was the job of the mother of {name}?", "{name} grew up beside {a} {value}."),
        ("What job did the mother of {name} have?", "Mother earned wages as {a} {value}."),
        ("Which job did the mother of {name} hold?", "A busy {value} raised {him}."),
    ),
    "book": (
        ("What is the best known book by {name}?", "{name} published '{value}'."),
        ("Which book by {name} is the best known?", "Fame came through '{value}'."),
        ("Which book made {name} known?", "'{value}' flowed from {his} pen."),
    ),
    "prize": (
        ("Which prize did {name} win?", "{name} won the {value}."),
        ("What prize was given to {name}?", "Judges handed {him} the {value}."),
        ("Which prize was won by {name}?", "The {value} rewarded {his} talent."),
    ),
    "hobby": (
        ("What is the hobby of {name}?", "{name} spends free hours at {value}."),
        ("Which hobby does {name} have?", "The favourite pastime is {value}."),
        ("What hobby does {name} enjoy?", "After work {he} turns to {value}."),
    ),
}
KINDS = tuple(FORMS)


@dataclasses.dataclass(frozen=True)
class Author:
    """A fictitious person: full name, gender for pronouns, and one value per kind of fact."""

    name: str
    female: bool
    facts: dict[str, str]


def draw_value(rng: random.Random, kind: str) -> str:
    """A random value of a kind of fact; book titles and prizes are composed of two parts."""
    if kind == "book":
        return f"{rng.choice(TITLE_STARTS)} {rng.choice(TITLE_ENDS)}"
    if kind == "prize":
        return f"{rng.choice(PRIZE_STARTS)} {rng.choice(PRIZE_ENDS)}"
    return rng.choice(VALUES[kind])


def draw_author(rng: random.Random) -> Author:
    """A random author."""
    female = rng.random() < 0.5
    first = rng.choice(FEMALE if female else MALE)
    name = f"{first} {rng.choice(SURNAME_STARTS)}{rng.choice(SURNAME_ENDS)}"
    return Author(name, female, {kind: draw_value(rng, kind) for kind in KINDS})


def draw_distinct_authors(rng: random.Random, count: int) -> list[Author]:
    """Random authors with distinct first names, surnames, surname stems, books and prizes."""
    authors: list[Author] = []
    taken: set[str] = set()
    while len(authors) < count:
        author = draw_author(rng)
        first, surname = author.name.split(" ")
        stem = next(start for start in SURNAME_STARTS if surname.startswith(start))
        marks = {first, stem, author.facts["book"], author.facts["prize"]}
        if taken.isdisjoint(marks):
            taken |= marks
            authors.append(author)
    return authors


def fill(template: str, author: Author, value: str = "") -> str:
    """A question or answer about an author, from its template."""
    her = author.female
    return template.format(
        name=author.name,
        value=value,
        a="an" if value[:1] in set("aeiou") else "a",
        he="she" if her else "he",
        him="her" if her else "him",
        his="her" if her else "his",
        His="Her" if her else "His",
    )
