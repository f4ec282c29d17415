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
}
"""By language. Languages that are not here are left to the counts of the data set."""


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
