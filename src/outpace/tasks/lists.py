"""The list tasks of ParallelBench (Kang et al., 2025, arXiv 2510.04767), generated anew over names and nouns.

In `copy` every answer token depends on the prompt alone; in `shuffle` and `replace-random` the answer tokens depend on
each other, so tokens that are chosen at the same moment can contradict. That difference is what the tasks measure.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from .example import Check, Example, Make, first_lines

FEWEST, MOST = 3, 6
# Words that the tokenizer of the zoo holds as one token when a blank stands before them.
NAMES = tuple(
    "Emma Mia Emily Grace Lily Lucy Anna Sarah Clara Mary Molly Daisy Sara Rachel Amy Lila Jane Heidi Anne Martha Lisa "
    "Susan Jenny Sally Alex Janet Max Polly Beth James Becky Kim Andy Jill Leo Meg Henry Sue John Sam Andrew Matthew "
    "Jack Thomas Billy Kitty Tony Robert Jose Jason George Mark Peter Charlie Paul Jake Frank Jerry Harry Jimmy Ben "
    "Joe Carl Tommy Mike Steve Benny Hans Fred Dan Jeff Tom Tim Ted Bill Matt Jim Bob".split()
)
NOUNS = tuple(
    "apple ball bird boat book box bread bus cake car cat chair clock cloud cow cup dog doll door dress duck egg fish "
    "flower fox frog game gift hat hill horse house key king kite lake lamp leaf lion map milk monkey moon mouse mud "
    "nest park pen pig pond rabbit rain ring river road rock rope sand shell ship sky snow sock song spoon star stick "
    "stone sun swing table tent toy train tree truck wall water wind wood bear bed bee bell".split()
)


def items_of(prompt: str) -> list[str]:
    """The list that a prompt holds."""
    return prompt.split(": ", 1)[1].split("\n")[0].split()


def _draw(random: Random, extra: int = 0) -> tuple[list[str], list[str]]:
    """Different items of one kind: the list, and `extra` further ones."""
    pool = random.choice((NAMES, NOUNS))
    count = random.randint(FEWEST, MOST)
    drawn = random.sample(pool, count + extra)
    return drawn[:count], drawn[count:]


def _pose(order: str, items: list[str], answer: list[str]) -> tuple[str, str]:
    return f"{order}: {' '.join(items)}\nAnswer:", f" {' '.join(answer)}\n"


def _whole(order: str, change: Callable[[list[str]], list[str]]) -> Make:
    def make(random: Random) -> tuple[str, str]:
        items, _ = _draw(random)
        return _pose(order, items, change(items))

    return make


def _shuffle(random: Random) -> tuple[str, str]:
    items, _ = _draw(random)
    answer = items
    while answer == items:
        answer = random.sample(items, len(items))
    return _pose("Shuffle", items, answer)


def _replace(is_named: bool) -> Make:
    def make(random: Random) -> tuple[str, str]:
        items, (new,) = _draw(random, 1)
        place = random.randrange(len(items))
        which = str(place + 1) if is_named else "any"
        return _pose(f"Replace {which} with {new}", items, [*items[:place], new, *items[place + 1 :]])

    return make


def _insert(random: Random) -> tuple[str, str]:
    items, (new,) = _draw(random, 1)
    place = random.randint(0, len(items))
    return _pose(f"Insert {new} at {place + 1}", items, [*items[:place], new, *items[place:]])


def _remove(random: Random) -> tuple[str, str]:
    items, _ = _draw(random)
    place = random.randrange(len(items))
    return _pose(f"Remove {place + 1}", items, items[:place] + items[place + 1 :])


def _is_answer(example: Example, text: str) -> bool:
    return first_lines(text)[0].split() == example.answer.split()


def _is_shuffle(example: Example, text: str) -> bool:
    items, given = items_of(example.prompt), first_lines(text)[0].split()
    return given != items and sorted(given) == sorted(items)


def _is_replacement(example: Example, text: str) -> bool:
    items, given = items_of(example.prompt), first_lines(text)[0].split()
    new = example.prompt.split(": ", 1)[0].split()[-1]
    changed = [mine for mine, theirs in zip(given, items, strict=False) if mine != theirs]
    return len(given) == len(items) and changed == [new]


LISTS: dict[str, tuple[Make, Check]] = {
    "copy": (_whole("Copy", list), _is_answer),
    "reverse": (_whole("Reverse", lambda items: items[::-1]), _is_answer),
    "sort": (_whole("Sort", sorted), _is_answer),
    "shuffle": (_shuffle, _is_shuffle),
    "replace-index": (_replace(True), _is_answer),
    "replace-random": (_replace(False), _is_replacement),
    "insert": (_insert, _is_answer),
    "remove": (_remove, _is_answer),
}
