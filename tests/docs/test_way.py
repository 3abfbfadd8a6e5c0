"""The map in `docs/loop.md`, 'A request's way through the code', is the way that a request takes."""

import re
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import outpace

ROOT = Path(__file__).parents[2]
SOURCE = Path(outpace.__file__).parent


def shown() -> list[tuple[str, str]]:
    """Files and functions of the table, in its order."""
    page = (ROOT / "docs/loop.md").read_text(encoding="utf-8")
    section = page.partition("## A request's way through the code")[2].partition("\n## ")[0]
    return re.findall(r"^\| `([\w/]+\.py)` \| `([\w.]+)` \|", section, flags=re.MULTILINE)


def entered() -> list[tuple[str, str]]:
    """Every function of the package that one call of `generate` enters, in the order of first entries."""
    lm, found = outpace.load("stories"), dict[tuple[str, str], None]()

    def note(frame: FrameType, event: str, argument: Any) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(str(SOURCE)):
            found.setdefault((str(Path(code.co_filename).relative_to(SOURCE)), code.co_qualname))

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        lm.generate("Once upon a time there was a time", method="prompt-lookup", max_tokens=12)
    finally:
        sys.setprofile(before)
    return list(found)


def test_the_map_is_the_way() -> None:
    places, way = shown(), entered()
    assert len(places) > 12
    missing = [place for place in places if place not in way]
    assert not missing
    order = [way.index(place) for place in places]
    assert [places[i] for i in range(1, len(order)) if order[i] < order[i - 1]] == []
