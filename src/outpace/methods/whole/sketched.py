"""What the rules that complete given tokens share: their room, words that may not come, passes of the network, laws.

Given tokens stay whatever the network says: a `Sketch` has no way to delete or split them, their laws hold nothing else
at any temperature, and settings that would forbid one of them are refused.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

from torch import Tensor

from outpace.errors import CapabilityError, ConfigError
from outpace.methods.whole.base import WholeMethod
from outpace.models.nar.model import NarModel, outputs_of
from outpace.models.nar.network import Pass
from outpace.models.nar.sketch import Sketch, phrases_of
from outpace.models.nar.sketched import NEVER, Sketched, certain_laws
from outpace.sampling import Sampling
from outpace.types import Adapter, Context, Counter

__all__ = ["Growing", "SketchMethod"]

_PATHS = ("constraint", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "forced_bos_token_id")


@dataclass(slots=True)
class Growing:
    """Texts that grow.

    Attributes:
        net, run: the network, and what its encoder made of the sources.
        sketches: a text per row.
        rooms: tokens that each may have.
        banned: per row, tokens that no slot may get.
        counter: of the passes.
        first: what the pass gave that read the sources; it is the first look.
        laws: per row and token, the log-probabilities [V] that it was taken from; None = it was given.
    """

    net: Sketched
    run: Pass
    sketches: list[Sketch]
    rooms: list[int]
    banned: list[list[int]]
    counter: Counter
    first: Sequence[Tensor] = ()
    laws: list[list[Tensor | None]] = field(init=False)

    def __post_init__(self) -> None:
        """Nothing but given tokens stands there."""
        self.laws = [[None] * len(sketch.tokens) for sketch in self.sketches]

    def look(self, rows: Sequence[int]) -> list[Tensor]:
        """Run the network once on some rows, and return what it gives, without what may not come."""
        if self.first:
            found = [part[list(rows)] for part in self.first]
            self.first = ()
        else:
            run = self.net.laid(self.run, self.sketches, rows)
            found = self.net.finish(run)
            self.counter.add(run.is_place.numel(), self.net.config.decoder_layers)
        for place, row in enumerate(rows):
            found[0][place, :, self.banned[row]] = NEVER
        return found

    def left(self, row: int) -> int:
        """Return how many tokens a row may still get."""
        return max(0, self.rooms[row] - len(self.sketches[row].tokens))

    def insert(self, row: int, slot: int, tokens: Sequence[int], laws: Sequence[Tensor]) -> None:
        """Put tokens into a slot, with the log-probabilities that they were taken from."""
        self.sketches[row].insert(slot, tokens)
        self.laws[row][slot:slot] = laws

    def is_joined(self, row: int, at: int) -> bool:
        """Return whether a token that was not given goes on with a given word."""
        sketch = self.sketches[row]
        return sketch.is_given[at - 1] and not sketch.is_given[at] and bool(self.net.joins[sketch.tokens[at]])

    def delete(self, row: int, at: int) -> None:
        """Take a token out that was not given."""
        self.sketches[row].delete(at)
        del self.laws[row][at]

    def put(self, row: int, at: int, token: int, law: Tensor) -> None:
        """Let another token stand at a place that was not given."""
        assert not self.sketches[row].is_given[at]
        self.sketches[row].tokens[at], self.laws[row][at] = token, law

    def written(self, row: int, like: Tensor) -> Tensor:
        """Return the logits [N, V] of a row's text."""
        vocab = self.net.config.vocab_size
        laws = certain_laws(self.sketches[row].tokens, vocab, like)
        for at, law in enumerate(self.laws[row]):
            if law is not None:
                is_behind = at > 0 and self.laws[row][at - 1] is None
                laws[at] = law[:vocab].masked_fill(self.net.joins & is_behind, NEVER)
        return laws


@dataclass(frozen=True)
class SketchMethod(WholeMethod):
    """Base of the rules; a subclass gives `complete`."""

    @abstractmethod
    def complete(self, growing: Growing) -> None:
        """Let the texts grow until they are done."""

    def check_request(self, target: Adapter, sources: Sequence[list[int]], rooms: Sequence[int]) -> None:
        """Refuse more given words than a text has room for."""
        net = cast("NarModel", target).net
        assert isinstance(net, Sketched)
        for source, room in zip(sources, rooms, strict=True):
            phrases, has_bar = phrases_of(source, net.starts.tolist())
            if has_bar or not net.config.plan:
                net.check_room([Sketch.of(phrases)], room)

    def choose(self, model: NarModel, context: Context) -> Sequence[Tensor]:
        """Complete what is given; see `WholeMethod`.

        Raises:
            ConfigError: what is given may not come.
        """
        net, cache = model.net, context.cache
        assert isinstance(net, Sketched) and cache is not None
        is_place, outputs = outputs_of(cache)
        run, sketches = net.resume(outputs, is_place)
        # Places count from behind the start token, also where a row joins again in the midst of its text.
        rooms = [
            min(limit or net.config.max_positions, net.config.max_positions - 1) - 1 for limit in context.sampler.limits
        ]
        growing = Growing(net, run, sketches, rooms, self._banned(context, sketches), cache.counter, outputs)
        self.complete(growing)
        return [model.ended(growing.written(row, outputs[0])) for row in range(len(sketches))]

    @staticmethod
    def _banned(context: Context, sketches: Sequence[Sketch]) -> list[list[int]]:
        sampler = context.sampler
        found = [list[int]() for _ in sketches]
        for rows, part in sampler.parts or [(list(range(len(sketches))), sampler)]:
            for row in rows:
                found[row] = _forbidden(part.settings, sketches[row])
        return found


def _forbidden(settings: Sampling, sketch: Sketch) -> list[int]:
    """Return the tokens that may not come; refuse where that touches what is given."""
    name = next((name for name in _PATHS if getattr(settings, name)), "")
    if name:
        raise CapabilityError(f"{name} could forbid a given word, which has to stay.", "Leave it out.")
    words = [*map(list, settings.bad_words), *([token] for token in settings.suppress_tokens)]
    tokens = sketch.tokens
    for word in words:
        starts = (at for at in range(len(tokens)) if tokens[at : at + len(word)] == word)
        # A word whose pieces may still be parted is not in the text yet.
        if any(all(sketch.is_glued[at + 1 : at + len(word)]) for at in starts):
            raise ConfigError("A word is both given and banned.", "Leave it out of one of the two.")
    return [word[0] for word in words if len(word) == 1]
