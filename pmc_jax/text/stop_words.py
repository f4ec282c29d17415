"""Function words: articles, pronouns, prepositions, auxiliaries. They carry no fact.

Each list is short on purpose. Words that are frequent in a data set are found by counting them
(`facts.background_of`), in any language.
"""

import functools

from pmc_jax.text.words import words_of

STOP_WORDS = {
    "en": """
        a about after all also am among an and any are as at be because been before being between
        both but by can could did do does during each few for from further had has have having he
        her here hers herself him himself his how i if in into is it its itself just may me might
        more most must my myself no nor not of off on once one only or other our out over own s same
        shall she should so some such t than that the their theirs them themselves then there these
        they this those through to too under until up upon us very was we were what when where
        which while who whom whose why will with within would you your yours
        isn aren wasn weren hasn haven hadn doesn didn don shouldn wouldn couldn ll ve re m
        """,
    "de": """
        aber alle als also am an auch auf aus bei bin bis da das dass dem den der des die dies diese
        dieser dieses doch du durch ein eine einem einen einer eines er es für hat hatte ich ihr
        ihre ihrem ihren ihrer im in ist ja kann mit nach nicht noch nur ob oder sein seine seinem
        seinen seiner sich sie sind so über um und uns unter vom von vor war waren was welche wenn
        wer werden wie wird wo wurde wurden zu zum zur zwischen
        """,
    "fr": """
        a à au aux avec ce ces cet cette comme d dans de des du elle elles en entre est et été être
        eu fut il ils j je l la le les leur leurs lui mais me même mon n ne nous on ont ou où par
        pas plus pour qu que quel quelle qui s sa sans se ses si son sont sous sur un une vers vous
        était étaient
        """,
    "es": """
        a al como con cual cuando de del desde donde e el él ella ellos en entre era eran es esta
        este esto fue fueron ha han hasta la las le les lo los más me mi muy ni no nos o para pero
        por que qué quien se ser si sin sobre son su sus también un una uno y ya
        """,
    "it": """
        a ad ai al alla alle anche che chi ci col come con da dal dalla dei del della delle di dove
        e è era erano essere fu gli ha hanno i il in io l la le lei lo loro lui ma nel nella nelle
        non o per più quale quando questa questo se si sia sono su sua sue sui sul sulla suo tra un
        una uno
        """,
    "pt": """
        a ao aos as às com como da das de do dos e é ela ele eles em entre era eram essa esse está
        este eu foi foram há isso já mais mas na nas não no nos o onde os ou para pela pelo por
        qual quando que quem se sem ser seu seus são sua suas também um uma
        """,
    "nl": """
        aan als bij dan dat de der deze die dit door een en er had heb heeft het hij hoe hun ik in
        is kan maar met naar niet nog of om onder ook op over te tot uit van voor waar waren was
        wat werd wie wordt ze zij zijn zich zo
        """,
    "sv": """
        av att blev där de den det din du efter ej ett en eller för från ha hade han hans har hon
        hennes i in inte jag kan man med men mot mycket när någon och om på sedan sig sin sina som
        så till under upp ut vad var vem vid är över
        """,
    "pl": """
        a ale był była było byli być co czy dla do gdy gdzie go i ich ja jak jako jej jego jest już
        kiedy kto która które który lub ma między mnie na nad nie niż o od oraz po pod przez przy
        się są ta tak tam te tego tej ten to tu tylko w we z za ze że
        """,
    "tr": """
        ama bir biri bu ben beri ço da daha de değil diye en gibi hem her için ile ise kadar ki kim
        mı mi ne nerede o olan olarak oldu olduğu sonra şu tarafından var ve veya ya yok
        """,
    "ru": """
        а без был была были было быть в вам вас во вот все всё вы где да для до его её ей если есть
        ещё же за и из или им их к как какой ко когда который которая кто ли мне мы на над не него
        неё нет ни но о об он она они оно от по под при с со так также там то тоже только ты у уже
        что чтобы это этот эта эти я
        """,
    "ar": """
        في من على إلى عن مع هو هي هم كان كانت قد لا ما لم لن أن إن أو ثم هذا هذه ذلك تلك التي الذي
        بعد قبل حيث أين متى كيف بين عند كل و
        """,
    "fa": """
        در از به با که را این آن و یا برای تا است بود شد هست او من ما شما آنها هم نیز اما اگر بر بی
        نه چه کجا کی
        """,
    "hi": """
        में है हैं का के की को से पर और था थी थे ने हुआ हुई हुए यह वह ये वे कि जो तो ही भी एक नहीं
        या कहाँ कब कौन क्या उनका उनकी उनके उसका उसकी उसके इस उस अपने
        """,
    "zh": "的了在是于和与也就都而及着过吗呢吧這这那他她它我你們们並并",
}
"""By language. Languages that are not here are left to the counts of the data set."""


ANSWERS_ALONE = frozenset(
    words_of("no not nein nicht ja non pas nee niet não nej nie нет да не لا")
)
"""Function words that can be a whole answer."""


@functools.cache
def stop_words() -> dict[str, frozenset[str]]:
    """The stop words of each language in the form in which texts are compared."""
    return {name: frozenset(words_of(words)) for name, words in STOP_WORDS.items()}


def stop_words_of(words: tuple[str, ...]) -> frozenset[str]:
    """The stop words of the language that most of `words` are stop words of.

    A word such as "die" or "war" is a stop word in one language only. English wins a draw.
    """
    lists = stop_words()
    return max(lists.values(), key=lambda known: sum(word in known for word in words))
