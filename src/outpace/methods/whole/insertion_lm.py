"""Insert one token at a time, its slot and itself chosen together, until the network says that the text is done.

Paper: Patel et al. (2025), arXiv 2505.05755 (insertion language models), section 3.
Guarantee: approximate; every given token stands in the text, in order, phrases in one piece, whatever the network says.
Cost: a pass of the decoder per inserted token, and one to stop.
Differences: the likeliest pair is taken; a temperature varies words at the end, not slots.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from outpace.methods.whole.sketched import Growing, SketchMethod
from outpace.papers import Paper
from outpace.setting import setting

__all__ = ["OneInsertion"]


@dataclass(frozen=True)
class OneInsertion(SketchMethod):
    """Insertion token by token.

    Attributes:
        stop: probability of being done from which on a text is.
        steps: most tokens inserted.

    Raises:
        ConfigError: no steps, or a probability outside 0 to 1.
    """

    stop: float = setting(0.5, above=0.0, most=1.0)
    steps: int = setting(1024, least=1, note="without a step nothing is written")

    name: ClassVar[str] = "insertion-lm"
    summary: ClassVar[str] = "Completes given words one token at a time, wherever the network is surest."
    kinds: ClassVar[tuple[str, ...]] = ("insertion-lm",)
    paper: ClassVar[Paper] = Paper(
        "Insertion Language Models: Sequence Generation with Arbitrary-Position Insertions",
        "Patel et al.",
        2025,
        "2505.05755",
        56,
        "Sampling by nucleus, and its larger models.",
        'outpace generate "Once upon a time|was very happy." --model runs/stories-gaps --method insertion-lm --json',
    )

    def complete(self, growing: Growing) -> None:
        """Insert until every row is done."""
        rows, vocab = list(range(len(growing.sketches))), growing.net.config.vocab_size
        for _ in range(self.steps):
            rows = [row for row in rows if growing.left(row) > 0]
            if not rows:
                return
            laws, going = growing.look(rows)[0], []
            for place, row in enumerate(rows):
                if float(laws[place, 0, vocab]) >= math.log(self.stop):
                    continue
                found = laws[place, : len(growing.sketches[row].tokens) + 1, :vocab]
                slot, token = divmod(int(found.argmax()), vocab)
                growing.insert(row, slot, [token], [found[slot]])
                going.append(row)
            rows = going
