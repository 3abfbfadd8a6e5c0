"""Mistakes made by rule in clean English: what a corrector learns to undo.

A rule looks at one word and its neighbours and says what a learner, or a hurried hand, might have written there. It
acts only where the right word can still be told from what stands around it, so that a corrector learns no habit of
changing what was right. Text is cut into pieces, each a word or a mark with the blanks before it; joined, they are the
text again.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from random import Random

__all__ = ["RULES", "Rule", "make_mistakes", "pieces", "swap_words"]

Rule = Callable[[Sequence[str], int, Random], str | None]
"""(bare pieces, place, draws) -> what stands there instead, "" = nothing; None = the rule does not apply."""

_PIECE = re.compile(r"\s*(?:\w+(?:['\u2019]\w+)*|[^\w\s])")
_COUNTS = (0, 0, 0, 1, 1, 1, 1, 2, 2, 3)  # mistakes in a sentence of ordinary length, drawn evenly
_KEYS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
_NEAR = {
    key: "".join(row[at + step] for step in (-1, 1) if 0 <= at + step < len(row))
    for row in _KEYS
    for at, key in enumerate(row)
}


def _groups(text: str) -> dict[str, list[str]]:
    """Return each word's rivals, from groups parted by semicolons."""
    sets = [group.split() for group in text.split(";")]
    return {word: [other for other in group if other != word] for group in sets for word in group}


_HOMOPHONES = _groups(
    "their there they're; your you're; its it's; to too; than then; whose who's; lose loose; quite quiet; "
    "here hear; no know; write right; buy by; weather whether; accept except; past passed; were where; peace piece; "
    "break brake; new knew; week weak; hole whole; wait weight; through threw; wood would; see sea; meet meat; our are"
)
_PREPOSITIONS = _groups("in on at; to for; of from; with by; into in; about of; since for; during in; onto on")
_PRONOUNS = _groups("I me; he him; she her; we us; they them; this these; that those; who which; much many; my me")
_BE = _groups("is are am; was were; has have; does do; doesn't don't; isn't aren't; wasn't weren't; hasn't haven't")
_DROPPED = frozenset("to of is are was were be in on at for with that it the a an and has have been".split())
_MODALS = frozenset(
    "to will would can could must should may might do does did don't doesn't didn't won't can't couldn't let's".split()
)
_SINGULAR = frozenset("he she it tom mary nobody everyone everybody someone".split())
_PLURAL = frozenset("i you we they".split())
_BEING = frozenset("is are am was were be been i'm he's she's it's we're they're you're".split())
_HAVING = frozenset("have has had i've we've they've you've haven't hasn't".split())
_MANY = frozenset("two three four five six seven eight nine ten many several few these those both all some".split())
_ONE = frozenset("a an one this that every each another".split())
_VERBS = [
    line.split()
    for line in """be is was been being;go goes went gone going;have has had had having;do does did done doing
come comes came come coming;see sees saw seen seeing;take takes took taken taking;give gives gave given giving
make makes made made making;get gets got got getting;know knows knew known knowing;eat eats ate eaten eating
write writes wrote written writing;read reads read read reading;speak speaks spoke spoken speaking
buy buys bought bought buying;bring brings brought brought bringing;think thinks thought thought thinking
say says said said saying;tell tells told told telling;find finds found found finding;leave leaves left left leaving
feel feels felt felt feeling;keep keeps kept kept keeping;sleep sleeps slept slept sleeping
meet meets met met meeting;run runs ran run running;sit sits sat sat sitting;stand stands stood stood standing
lose loses lost lost losing;pay pays paid paid paying;sell sells sold sold selling;send sends sent sent sending
build builds built built building;break breaks broke broken breaking;drive drives drove driven driving
drink drinks drank drunk drinking;sing sings sang sung singing;swim swims swam swum swimming
begin begins began begun beginning;fall falls fell fallen falling;grow grows grew grown growing
forget forgets forgot forgotten forgetting;wear wears wore worn wearing;win wins won won winning
hear hears heard heard hearing;hold holds held held holding;become becomes became become becoming
understand understands understood understood understanding;teach teaches taught taught teaching
catch catches caught caught catching;study studies studied studied studying;try tries tried tried trying
cry cries cried cried crying;use uses used used using;live lives lived lived living;love loves loved loved loving
like likes liked liked liking;hope hopes hoped hoped hoping;move moves moved moved moving
close closes closed closed closing;stop stops stopped stopped stopping;plan plans planned planned planning
arrive arrives arrived arrived arriving;decide decides decided decided deciding
believe believes believed believed believing;change changes changed changed changing
lie lies lay lain lying;put puts put put putting""".replace("\n", ";").split(";")
] + [
    [verb, verb + "s", verb + "ed", verb + "ed", verb + "ing"]
    for verb in """want need look play work help ask talk walk call open start turn seem show learn listen wait visit
stay enjoy cook clean answer follow explain remember return happen laugh smile kill join jump paint rain travel speed
suggest expect wonder order offer point pull reach fill lift count doubt end act add allow appear avoid consider contain
cost demand enter fail finish gain last lead mean own pass prefer prevent prove report sound spend wash watch""".split()
]
_FORMS: dict[str, list[tuple[int, list[str]]]] = {}
for _forms in _VERBS:
    for _at, _form in enumerate(_forms):
        _FORMS.setdefault(_form, []).append((_at, _forms))


def pieces(text: str) -> list[str]:
    """Cut text into words and marks, each with the blanks before it; joined they are the text, but for its end."""
    return _PIECE.findall(text)


def make_mistakes(text: str, random: Random, most: int | None = None) -> str:
    """Return the text with some mistakes in it, often one, sometimes none.

    Args:
        text: one or two sentences.
        random: decides which.
        most: how many; None = drawn, more in longer texts.
    """
    found = pieces(text)
    wanted = most if most is not None else round(random.choice(_COUNTS) * max(1.0, len(found) / 14))
    changed = set[int]()
    for _ in range(wanted * 12):
        if not found or wanted <= 0:
            break
        rule = random.choices(list(RULES), list(RULES.values()))[0]
        at = random.randrange(len(found))
        bare = [piece.lstrip() for piece in found]
        new = None if at in changed else rule(bare, at, random)
        if new is None or new == bare[at]:
            continue
        blanks = found[at][: len(found[at]) - len(bare[at])]
        found[at] = blanks + new if new else ""
        changed |= {at, at + 1}
        wanted -= 1
    return "".join(found).strip() or text


def swap_words(text: str, random: Random, share: float = 0.25) -> str:
    """Return the text, in a share of the cases with two neighbouring small words in each other's place."""
    found = pieces(text)
    places = [at for at in range(1, len(found) - 1) if found[at].strip().islower() and found[at + 1].strip().islower()]
    if places and random.random() < share:
        at = random.choice(places)
        found[at], found[at + 1] = found[at + 1], found[at]
    return "".join(found).strip()


def _as(word: str, like: str) -> str:
    """Return a word with the first letter as large as another's."""
    return word[:1].upper() + word[1:] if like[:1].isupper() and like != "I" else word


def _rival(groups: dict[str, list[str]]) -> Rule:
    """Return the rule that puts a rival of the same group in a word's place."""

    def rule(words: Sequence[str], at: int, random: Random) -> str | None:
        word = words[at]
        rivals = groups.get(word) or groups.get(word.lower())
        return None if not rivals else _as(random.choice(rivals), word)

    return rule


def _verb(words: Sequence[str], at: int, random: Random) -> str | None:
    """Another form of a verb whose form its left neighbour tells: she go, to went, have went, is go."""
    before, word = words[at - 1].lower() if at else "", words[at]
    wanted = {
        0: before in _MODALS or before in _PLURAL,
        1: before in _SINGULAR,
        3: before in _HAVING,
        4: before in _BEING,
    }
    for form, verb in _FORMS.get(word, []):
        if wanted.get(form):
            others = [other for other in dict.fromkeys(verb) if other != word]
            return verb[0] if form and random.random() < 0.6 and verb[0] != word else random.choice(others)
    return None


def _number(words: Sequence[str], at: int, random: Random) -> str | None:
    """A noun in the wrong number after a word that tells it: two book, a cats."""
    del random
    before, word = words[at - 1].lower() if at else "", words[at]
    if not word.isalpha() or not word.islower() or len(word) < 4:
        return None
    if before in _MANY and word.endswith("s") and not word.endswith(("ss", "us")):
        return word[:-1]
    return word + "s" if before in _ONE and not word.endswith(("s", "ch", "sh", "y", "x", "ing", "ly")) else None


def _article(words: Sequence[str], at: int, random: Random) -> str | None:
    """An article left out, or another."""
    word = words[at].lower()
    if word not in ("a", "an", "the"):
        return None
    if random.random() < 0.5:
        return ""
    return _as({"a": "an", "an": "a", "the": "a"}[word], words[at])


def _extra_article(words: Sequence[str], at: int, random: Random) -> str | None:
    """A "the" where none belongs: before a pronoun, a number or a name."""
    word = words[at]
    del random
    is_odd = word.lower() in ("my", "his", "her", "our", "your", "this", "home", "me", "him") or word in ("Tom", "Mary")
    return f"the {word}" if at and is_odd else None


def _spelling(words: Sequence[str], at: int, random: Random) -> str | None:
    """A slip of the keyboard, two letters swapped, one lost, doubled or guessed."""
    word = words[at]
    if len(word) < 4 or not word.isalpha() or not word.isascii():
        return None
    place = random.randrange(1, len(word))
    head, letter, tail = word[:place], word[place], word[place + 1 :]
    kind = random.randrange(5)
    if kind == 0 and letter in _NEAR:
        return head + random.choice(_NEAR[letter]) + tail
    if kind == 1:
        return head[:-1] + letter + head[-1] + tail if place > 1 else head + tail[:1] + letter + tail[1:]
    if kind == 2:
        return head + tail
    if kind == 3:
        return head + letter + letter + tail
    return head + random.choice("aeiou") + tail if letter in "aeiou" else None


def _case(words: Sequence[str], at: int, random: Random) -> str | None:
    """A small letter where a large one belongs."""
    del random
    word = words[at]
    return word.lower() if word[:1].isupper() and (len(word) == 1 or not word.isupper()) else None


def _mark(words: Sequence[str], at: int, random: Random) -> str | None:
    """A mark left out or taken for another, an apostrophe forgotten."""
    word = words[at]
    if word == "?" and random.random() < 0.5:
        return "."
    if word in (".", "?", ","):
        return ""
    return word.replace("'", "") if "'" in word and word[0] != "'" and word.lower() not in _HOMOPHONES else None


def _dropped(words: Sequence[str], at: int, random: Random) -> str | None:
    """A small word left out."""
    del random
    return "" if at and words[at] in _DROPPED else None


def _doubled(words: Sequence[str], at: int, random: Random) -> str | None:
    """A word written twice."""
    del random
    return f"{words[at]} {words[at].lower()}" if words[at].isalpha() else None


RULES: dict[Rule, float] = {
    _verb: 20,
    _rival(_BE): 12,
    _number: 8,
    _article: 8,
    _extra_article: 2,
    _rival(_PREPOSITIONS): 6,
    _rival(_PRONOUNS): 4,
    _rival(_HOMOPHONES): 7,
    _spelling: 14,
    _case: 6,
    _mark: 8,
    _dropped: 5,
    _doubled: 3,
}
"""The rules and how often each is tried."""
