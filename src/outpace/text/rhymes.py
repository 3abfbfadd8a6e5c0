"""Which English words rhyme: by their spelling, or by a pronouncing dictionary of the user's.

The rule by spelling speaks of words of one syllable: two different ones rhyme if they are spelt alike from their vowel
on, an `e` at the end being silent. Endings that are said in several ways (`-ove`, `-ead`) rhyme with nothing, and so do
longer words, whose stress no spelling tells. So the rule misses rhymes, and seldom invents one. `Pronunciations` knows
better where the user has a dictionary.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from outpace.errors import ConfigError

__all__ = ["Pronunciations", "last_word", "rhyme_by_spelling", "rhymes"]

_WORD = re.compile(r"[a-z]+(?:'[a-z]+)?")
_VOWELS = re.compile(r"[aeiouy]+")
# Said in more than one way at the end of common words: love and move, bread and bead, low and how.
_UNSURE = frozenset(
    "ough ove ood oods ear ears eard eat ow ows own owns ead eads ome ose oot oor ere ord ork oth one ould ost oll our "
    "ours ea eak ush ull omb ave ives ive aid or arm om og on oing ooth oe oes owl owls eaf orse uit ool".split()
)
_ODD = re.compile(r"wh?a[^gikvxy]|^(are|is|this|says|been|key)$")  # said as no neighbour is: want, ant


def last_word(line: str) -> str:
    """Return the last word of a line in lower case; "" where there is none."""
    found = _WORD.findall(line.lower())
    return found[-1] if found else ""


def rhyme_by_spelling(word: str) -> str:
    """Return the letters with which a word rhymes; "" where its spelling does not tell.

    Args:
        word: in lower case.
    """
    heard = word.removesuffix("e") if _VOWELS.findall(word)[1:] else word
    groups = list(_VOWELS.finditer(heard))
    if len(groups) != 1 or not word.isalpha() or _ODD.search(word):
        return ""
    found = word[groups[0].start() :]
    return "" if found in _UNSURE or (len(found) == 1 and found != "y") else found


@dataclass(frozen=True, slots=True)
class Pronunciations:
    """What words rhyme with, of a file in the format of the CMU Pronouncing Dictionary.

    Attributes:
        endings: of each word, the sounds from its last stressed vowel on, one entry for each way to say it.
    """

    endings: dict[str, frozenset[str]]

    @classmethod
    def read(cls, path: Path) -> Pronunciations:
        """Read a dictionary: a word and its sounds a line, vowels with a digit of stress.

        Raises:
            ConfigError: there is no such file, or no line of it is one of such a dictionary.
        """
        if not path.is_file():
            raise ConfigError(f"There is no pronouncing dictionary at {path}.", "Give a file such as cmudict.dict.")
        found = dict[str, set[str]]()
        for line in path.read_text(encoding="latin-1").split("\n"):
            word, *sounds = line.split("#")[0].lower().split()[:40] or [""]
            stressed = [at for at, sound in enumerate(sounds) if sound[-1] in "12"]
            if word and not word.startswith(";") and stressed:
                found.setdefault(re.sub(r"\(\d\)$", "", word), set()).add(" ".join(sounds[stressed[-1] :]))
        if not found:
            hint = "Each line is a word and its sounds, such as: light L AY1 T"
            raise ConfigError(f"No line of {path} tells how a word is said.", hint)
        return cls({word: frozenset(endings) for word, endings in found.items()})


def rhymes(first: str, second: str, said: Pronunciations | None = None) -> bool:
    """Whether two different words rhyme, by spelling or as they are said; a word that is not told of never does."""
    if first == second:
        return False
    if said is None:
        ending = rhyme_by_spelling(first)
        return ending != "" and ending == rhyme_by_spelling(second)
    return bool(said.endings.get(first, frozenset()) & said.endings.get(second, frozenset()))
