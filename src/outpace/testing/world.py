"""A small world to check methods in: toy models, ragged prompts, and one call that writes them to the end."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from outpace.cache import Cache
from outpace.heads.model import new_head
from outpace.methods.autoregressive import Autoregressive
from outpace.methods.base import Method
from outpace.models.any_order import AnyOrderConfig, AnyOrderNet
from outpace.models.any_order_model import ATTENTION, AnyOrderModel
from outpace.run.loop import Run
from outpace.run.row import Row
from outpace.sampling import Sampling, fork_key, row_key
from outpace.testing.grammar import ToyGrammar
from outpace.testing.one_pass import ToyOnePass, toy_network
from outpace.testing.spelling import respelled, toy_tokenizers
from outpace.testing.toy import ToyEncoderDecoder, ToyModel
from outpace.text.stream import TextStream
from outpace.types import NO_OUTPUTS, Adapter, Counter, Outputs, Scores

__all__ = [
    "PROMPTS",
    "SETTINGS",
    "NanRow",
    "PeriodicModel",
    "Watched",
    "drive",
    "ends_under",
    "inhabited",
    "join",
    "kind_here",
    "make_rows",
    "make_run",
    "partners_for",
    "reference",
    "toy_any_order",
    "toy_decode",
    "write",
]

SEED = 7
NUM_TOKENS = 16  # written per row, unless said otherwise
END = 3  # the end token wherever one is needed
PROMPTS: tuple[tuple[int, ...], ...] = (
    (1, 2, 3, 4, 5, 6, 7, 1, 2, 3),
    (5,),
    (2, 9, 2, 9, 2, 9, 4, 2, 9),
    (8, 0, 3, 3, 11, 6, 1, 10, 4, 7, 2, 8, 0),
)
SETTINGS: dict[str, Sampling] = {
    "greedy": Sampling(),
    "temperature 0.7": Sampling(temperature=0.7),
    "temperature 1.3": Sampling(temperature=1.3),
    "top-k": Sampling(temperature=0.9, top_k=3),
    "top-p": Sampling(temperature=1.3, top_p=0.7),
    "min-p": Sampling(temperature=1.3, min_p=0.2),
    "typical-p": Sampling(temperature=1.1, typical_p=0.6),
    "repetition penalty": Sampling(repetition_penalty=1.8),
    "presence penalty": Sampling(temperature=0.7, presence_penalty=2.5),
    "frequency penalty": Sampling(frequency_penalty=1.5),
    "logit bias": Sampling(temperature=0.7, logit_bias={3: 2.5, 4: -3.0}),
    "bad words": Sampling(bad_words=((8,), (3, 3), (12, 6, 3))),
    "minimum length": Sampling(temperature=0.7, logit_bias={END: 4.0}, min_tokens=9),
    "n-grams": Sampling(no_repeat_ngram_size=2, encoder_no_repeat_ngram_size=3),
    "forced and suppressed": Sampling(
        temperature=0.7,
        min_length=12,
        encoder_repetition_penalty=1.3,
        sequence_bias={(2, 9): -3.0, (6,): 1.0, (1, 2, 3): 2.0},
        suppress_tokens=(11,),
        begin_suppress_tokens=(4, 6),
        forced_bos_token_id=(9,),
        forced_eos_token_id=(END,),
        exponential_decay_length_penalty=(6, 1.2),
    ),
    "grammar": Sampling(temperature=0.7, logit_bias={END: 2.0}, min_tokens=1, constraint=ToyGrammar()),
    "everything": Sampling(
        temperature=1.2,
        top_k=8,
        top_p=0.95,
        min_p=0.01,
        typical_p=0.98,
        repetition_penalty=1.2,
        presence_penalty=0.3,
        frequency_penalty=0.2,
        logit_bias={5: 0.5},
        bad_words=((4, 4), (7,)),
        min_tokens=4,
    ),
}


_KIND = ContextVar("kind", default="decoder")


@contextmanager
def inhabited(kind: str) -> Iterator[None]:
    """Let the models of the world be of one kind while in the block.

    Kinds are "decoder", "encoder-decoder", "one-pass", and "one-pass:KIND" for a small random network of ours. Where a
    method writes on a canvas, its model is one whatever the kind.
    """
    token = _KIND.set(kind)
    try:
        yield
    finally:
        _KIND.reset(token)


def one_pass_kind(method: Method) -> str:
    """Return the kind of world for a method that takes whole texts: rules over places need a network of ours."""
    kinds = method.needs.kinds
    return f"one-pass:{kinds[0]}" if kinds else "one-pass"


def kind_here() -> str:
    """Return the kind of model that the world holds now."""
    return _KIND.get()


def target_for(attention: str) -> Adapter:
    """Return the toy target with such attention; where a method asks for any canvas, one with full attention."""
    return _target("full" if attention == "canvas" else attention, _KIND.get())


def drafter_for(attention: str) -> Adapter:
    """Return a drafter that agrees with `target_for` often, but not always; for "canvas", with the causal one."""
    return _drafter(attention, _KIND.get())


@functools.lru_cache(maxsize=8)
def _target(attention: str, kind: str) -> Adapter:
    if kind == "one-pass":
        return ToyOnePass()
    if kind.startswith("one-pass:"):
        return toy_network(kind.partition(":")[2])
    if attention == ATTENTION:
        return toy_any_order()
    is_pair = kind == "encoder-decoder" and attention == "causal"
    return ToyEncoderDecoder() if is_pair else ToyModel(attention=attention)


def toy_any_order(vocab: int = 13, places: int = 64) -> AnyOrderModel:
    """Return a small random network over shuffled places, in float64, far from uniform laws."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = AnyOrderNet(AnyOrderConfig(vocab=vocab, places=places, width=16)).double()
        with torch.no_grad():
            net.head.weight.mul_(4.0)
    return AnyOrderModel(net)


@functools.lru_cache(maxsize=8)
def _drafter(attention: str, kind: str) -> Adapter:
    if attention == "canvas":
        causal = _target("causal", "decoder")
        assert isinstance(causal, ToyModel)
        return ToyModel(attention="block", like=causal, noise=0.15, seed=1, block_size=4, logits_shift=True)
    if kind.startswith("one-pass"):  # what stands beside one writes token by token
        return ToyEncoderDecoder()
    target = target_for(attention)
    assert isinstance(target, ToyModel)
    if isinstance(target, ToyEncoderDecoder):
        return ToyEncoderDecoder(like=target, noise=0.25, seed=1)
    return ToyModel(attention=target.capabilities.attention, like=target, noise=0.15, seed=1)


@functools.lru_cache(maxsize=64)
def head_for(kind: str, target: Adapter) -> Adapter:
    """Return a trained drafter of a kind beside a target; it has learned nothing, so its drafts seldom match."""
    return new_head(kind, target)


def partners_for(method: Method, target: Adapter) -> dict[str, Adapter]:
    """Return the models that a method needs beside a target, by role."""
    needs, found = method.needs, dict[str, Adapter]()
    for role in (*needs.models, *needs.optional_models):
        found[role] = drafter_for(needs.model_attention.get(role, needs.attention))
    if "judge" in found:
        found["judge"] = head_for("judge", target)
    if needs.head:
        found["draft"] = head_for(needs.head, target)
    return {role: respelled(drafter) for role, drafter in found.items()} if needs.has_text else found


def make_rows(
    prompts: Sequence[Sequence[int]] = PROMPTS,
    max_tokens: int = NUM_TOKENS,
    *,
    keys: Sequence[int] | None = None,
    end_tokens: Sequence[int] = (),
) -> list[Row]:
    """Return one fresh row per prompt; row i has the key of sample i unless `keys` says otherwise."""
    keys = keys if keys is not None else [row_key(SEED, i) for i in range(len(prompts))]
    rows = [
        Row(list(prompt), len(prompt), key, max_tokens, tuple(end_tokens))
        for prompt, key in zip(prompts, keys, strict=True)
    ]
    if _KIND.get() != "decoder":
        for row in rows:
            first = row.tokens[0]  # all that a text which goes on shares with its prompt
            row.source = [first, (3 * first + 1) % 13, (first + 5) % 13][: 1 + first % 3]
            if _KIND.get().startswith("one-pass:"):  # places are few for a source so short
                row.source = [(token + 2 * at) % 13 for at in range(6) for token in row.source]
    return rows


def make_run(
    method: Method,
    settings: Sampling = SETTINGS["greedy"],
    *,
    target: Adapter | None = None,
    models: Mapping[str, Adapter] | None = None,
    capacity: int = 96,
    record: Sequence[str] = (),
    width: int = 0,
) -> Run:
    """Return a run of the method on the toy world; short prefill chunks, so that prompts need several."""
    chosen = target if target is not None else target_for(method.needs.attention)
    others = models if models is not None else partners_for(method, chosen)
    return Run(
        chosen,
        method,
        settings,
        capacity=capacity,
        models=others,
        record=record,
        chunk=4,
        width=width,
        tokenizers=toy_tokenizers(method, chosen, others),
    )


def join(run: Run, rows: Sequence[Row]) -> None:
    """Let rows join, each with as many beside it as its method writes together."""
    joining = list[Row]()
    for number, row in enumerate(rows):
        joining.append(row)
        if row.group is None and run.method.num_rows > 1:
            row.group = hash((id(row), number))
            for place in range(1, run.method.num_rows):
                text = None if row.text is None else row.text.fork()
                other = Row(
                    list(row.tokens), row.num_prompt, fork_key(row.key, place), row.max_tokens, row.end_tokens, text
                )
                other.source, other.group, other.place = row.source, row.group, place
                joining.append(other)
    run.join(joining)


def drive(run: Run, rows: Sequence[Row] = (), steps: int = 10_000) -> Run:
    """Join rows, and step until all are finished or `steps` were taken."""
    join(run, rows)
    while run.rows and steps > 0:
        run.step()
        steps -= 1
    return run


def ends_under(settings: Sampling) -> tuple[int, ...]:
    """Return the end tokens of rows: one where a setting speaks of ends, else none."""
    return (END,) if settings.min_tokens or settings.forced_eos_token_id else ()


def write(
    method: Method,
    settings: Sampling = SETTINGS["greedy"],
    rows: Sequence[Row] | None = None,
    *,
    target: Adapter | None = None,
    models: Mapping[str, Adapter] | None = None,
    capacity: int = 96,
    record: Sequence[str] = (),
    width: int = 0,
) -> list[Row]:
    """Write rows (the standard prompts by default) to the end and return them."""
    rows = make_rows(end_tokens=ends_under(settings)) if rows is None else list(rows)
    run = make_run(method, settings, target=target, models=models, capacity=capacity, record=record, width=width)
    drive(run, rows)
    return rows


@functools.lru_cache(maxsize=64)
def reference(name: str, max_tokens: int = NUM_TOKENS, kind: str = "decoder") -> tuple[tuple[int, ...], ...]:
    """Return what plain decoding writes after the standard prompts under `SETTINGS[name]`, on models of that kind."""
    with inhabited(kind):
        rows = make_rows(max_tokens=max_tokens, end_tokens=ends_under(SETTINGS[name]))
        return tuple(tuple(row.written) for row in write(Autoregressive(), SETTINGS[name], rows))


def toy_decode(tokens: list[int]) -> str:
    """Two characters per token, so that stop strings can cross a token border."""
    return "".join(chr(97 + token) + chr(65 + token) for token in tokens)


def with_stop(row: Row, stop: str) -> Row:
    """Give a row a stop string over `toy_decode`."""
    row.text = TextStream(toy_decode, (stop,), row.tokens)
    return row


class _Wrapper(Adapter):
    """An adapter around an adapter."""

    def __init__(self, target: Adapter) -> None:
        self.target, self.capabilities, self.dtype = target, target.capabilities, torch.float64
        self.mask_token, self.own_mask = target.mask_token, target.own_mask

    def __getattr__(self, name: str) -> Any:
        """Return what the inner adapter alone has, such as the network that a rule over places runs."""
        return getattr(self.__dict__["target"], name)

    def new_cache(self, rows: int, capacity: int, counter: Counter | None = None) -> Cache:
        """Return the inner adapter's cache."""
        return self.target.new_cache(rows, capacity, counter)

    def embed(self, tokens: Tensor) -> Tensor:
        """Return the inner adapter's embeddings."""
        return self.target.embed(tokens)

    def head(self, hidden: Tensor) -> Tensor:
        """Return the inner adapter's logits."""
        return self.target.head(hidden)

    def encode(self, sources: Sequence[list[int]], cache: Cache) -> None:
        """Run the inner adapter's encoder."""
        self.target.encode(sources, cache)

    def score(
        self,
        tokens: Tensor,
        position: Tensor,
        visible: Tensor | None,
        cache: Cache,
        ask: Tensor | None = None,
        outputs: Outputs = NO_OUTPUTS,
        inputs: Tensor | None = None,
        skip: Sequence[int] = (),
    ) -> Scores:
        """Run the inner adapter, then `after`."""
        scores = self.target.score(tokens, position, visible, cache, ask, outputs, inputs, skip)
        return self.after(scores, tokens, visible, skip)

    def after(self, scores: Scores, tokens: Tensor, visible: Tensor | None, skip: Sequence[int]) -> Scores:
        """Look at, or change, what was scored."""
        raise NotImplementedError


@dataclass
class _Calls:
    """What an adapter was asked for."""

    num: int = 0
    skips: set[int] = field(default_factory=set)
    used_tree: bool = False
    outside: bool = False


class Watched(_Wrapper):
    """Notes what is asked of an adapter: calls, skipped layers, masks between tokens, ids outside the vocabulary."""

    def __init__(self, target: Adapter) -> None:
        super().__init__(target)
        self.calls = _Calls()

    def after(self, scores: Scores, tokens: Tensor, visible: Tensor | None, skip: Sequence[int]) -> Scores:
        """Note the call."""
        self.calls.num += 1
        self.calls.skips |= set(skip)
        self.calls.used_tree |= visible is not None
        self.calls.outside |= bool(((tokens < 0) | (tokens >= self.capabilities.vocab_size)).any())
        return scores


class NanRow(_Wrapper):
    """Makes one row's logits NaN from some forward on, for as long as the batch is whole."""

    def __init__(self, target: Adapter, row: int, rows: int, first: int = 6) -> None:
        super().__init__(target)
        self.row, self.whole, self.left = row, rows, first

    def after(self, scores: Scores, tokens: Tensor, visible: Tensor | None, skip: Sequence[int]) -> Scores:
        """Break the row."""
        self.left -= 1
        if self.left >= 0 or tokens.shape[0] != self.whole:
            return scores
        logits = scores.logits.clone()
        logits[self.row] = float("nan")
        return replace(scores, logits=logits)


class PeriodicModel(_Wrapper):
    """Always continues 0, 1, ..., period - 1, 0, 1, ...: what follows position t is (t + 1) % period."""

    def __init__(self, period: int = 6) -> None:
        super().__init__(ToyModel())
        self.period = period

    def score(
        self,
        tokens: Tensor,
        position: Tensor,
        visible: Tensor | None,
        cache: Cache,
        ask: Tensor | None = None,
        outputs: Outputs = NO_OUTPUTS,
        inputs: Tensor | None = None,
        skip: Sequence[int] = (),
    ) -> Scores:
        """Run the toy model, whose cache discipline is kept, and replace what it says."""
        scores = self.target.score(tokens, position, visible, cache, ask, outputs, inputs, skip)
        asked = position if ask is None else position.gather(1, ask)
        follows = (asked.clamp(min=-1) + 1) % self.period
        logits = 60.0 * torch.nn.functional.one_hot(follows, scores.logits.shape[-1]).double()
        return replace(scores, logits=logits)
