"""Our own sequence-to-sequence networks: each against its whole forward, in every way of decoding, and as files."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from outpace import LanguageModel
from outpace.api.scoring import rescored
from outpace.errors import ConfigError
from outpace.models.nets.adapter import NetAdapter
from outpace.models.nets.base import PairNet
from outpace.models.nets.files import find_kind
from outpace.testing import check_adapter

VOCAB, ENDS = 23, (0,)
SOURCES = [[5, 9, 3, 9, 5, 9, 3, 0], [4, 0], [7, 7, 11, 0]]
TINY: dict[str, dict[str, Any]] = {
    "gru": {"width": 8, "hidden": 12},
    "gru-plain": {"width": 8, "hidden": 12, "has_attention": False},
    "pervasive": {"width": 6, "layers": 3, "growth": 4},
    "registers": {"width": 8, "layers": 2, "heads": 2, "ffn": 12, "factor": 2},
    "phrases": {"width": 6, "hidden": 8, "reach": 1, "longest": 3},
    "decoder-only": {"width": 8, "layers": 2, "heads": 2, "ffn": 12},
    "encoder-decoder": {"width": 8, "encoder_layers": 1, "decoder_layers": 2, "heads": 2, "ffn": 12},
}


SEEDS = {"phrases": 4}  # whose phrases are not all empty


def tiny(name: str, seed: int | None = None) -> PairNet:
    """Return a random network in float64, with logits far enough apart to be worth decoding."""
    torch.manual_seed(SEEDS.get(name, 0) if seed is None else seed)
    kind = find_kind(name.removesuffix("-plain"))
    net = kind(kind.Config(vocab_size=VOCAB, max_positions=64, max_source=64, **TINY[name])).double().eval()
    with torch.no_grad():
        for part, weight in net.named_parameters():
            if weight.dim() > 1:  # tied tables would write what they read, so the layers have to be strong
                weight.normal_(std=0.5 if "embed" in part else 1.0)
    return net


def logits(net: PairNet, source: list[int], inputs: list[int]) -> Tensor:
    """Return what the network says after each token of a target, in one forward of its own: [T, V]."""
    ids = torch.tensor([source])
    with torch.no_grad():
        return net.head(net.states(ids, torch.ones_like(ids, dtype=torch.bool), torch.tensor([inputs])))[0]


def written(net: PairNet, source: list[int], count: int) -> list[int]:
    """Return the greedy target, by reading everything again for every token."""
    text = [net.config.start_token]
    while len(text) <= count:
        text.append(int(logits(net, source, text)[-1].argmax()))
        if text[-1] in ENDS:
            break
    return text[1:]


def searched(net: PairNet, source: list[int], beams: int, most: int) -> list[int]:
    """Return the best text of a slow beam search that stops at as many ended texts as beams."""
    running, done = [(0.0, list[int]())], list[tuple[float, list[int]]]()
    for size in range(1, most + 1):
        grown = [
            (score + value, [*text, token])
            for score, text in running
            for token, value in enumerate(logits(net, source, [2, *text])[-1].log_softmax(-1).tolist())
        ]
        grown = sorted(grown, key=lambda one: -one[0])[: 2 * beams]
        ended = [text[-1] in ENDS or size == most for _, text in grown]
        done += [(grown[n][0] / size, grown[n][1]) for n in range(beams) if ended[n]]
        running = [one for one, is_over in zip(grown, ended, strict=True) if not is_over][:beams]
        if len(done) >= beams or not running:
            break
    return max(done)[1]


@pytest.mark.parametrize("name", TINY)
def test_beams_are_rows_that_fork(name: str) -> None:
    net = tiny(name)
    lm = LanguageModel(NetAdapter(net), end_tokens=ENDS)
    wanted = [searched(net, source, 3, 7) for source in SOURCES]
    for drafter in ("", "prompt-lookup"):
        options = {"beams": 3, "early_stopping": "true", "drafter": drafter}
        found = lm.generate(SOURCES, method="beam-search", options=options, max_tokens=7)
        assert [result.tokens for result in found] == wanted, drafter


@pytest.mark.parametrize("name", TINY)
def test_pieces_and_trees_are_the_whole_forward(name: str) -> None:
    net = tiny(name)
    check_adapter(NetAdapter(net))
    text, adapter = [2, 6, 8, 3, 3, 10], NetAdapter(net)
    cache = adapter.new_cache(1, 8)
    adapter.encode([SOURCES[0]], cache)
    found = adapter.score(torch.tensor([text]), torch.arange(6).unsqueeze(0), None, cache).logits[0]
    assert (found - logits(net, SOURCES[0], text)).abs().max() < 1e-10


@pytest.mark.parametrize("name", TINY)
def test_a_later_token_never_changes_an_earlier_law(name: str) -> None:
    net = tiny(name)
    ours, theirs = (logits(net, SOURCES[0], [2, 6, 8, *later]) for later in ([3, 10], [11, 4]))
    assert torch.equal(ours[:3], theirs[:3]) and not torch.equal(ours[3:], theirs[3:])
    assert not torch.equal(ours[:3], logits(net, SOURCES[2], [2, 6, 8])), "the source is not read"


def test_targets_read_registers_and_never_the_source() -> None:
    net: Any = tiny("registers")
    ids, inputs = torch.tensor([SOURCES[0]]), torch.tensor([[2, 6, 8, 3]])
    is_real, size, count = torch.ones_like(ids, dtype=torch.bool), len(SOURCES[0]), 4
    plain = net.states(ids, is_real, inputs)

    def disturbed(layer: int, part: slice) -> Tensor:
        """Return the last states where what enters a layer is changed at some places."""

        def change(states: Tensor) -> Tensor:
            states = states.clone()
            states[:, part] += torch.randn_like(states[:, part])
            return states

        projected = net.layers[layer].projected
        net.layers[layer].projected = lambda states: projected(change(states))
        try:
            found: Tensor = net.states(ids, is_real, inputs)
        finally:
            del net.layers[layer].projected
        return found

    last = net.config.layers - 1
    assert torch.equal(disturbed(last, slice(0, size)), plain)  # registers have read it by then; targets do not look
    assert not torch.allclose(disturbed(last, slice(size, size + count)), plain)
    assert not torch.allclose(disturbed(0, slice(0, size)), plain)  # through the registers alone it counts
    net.config = replace(net.config, tags=(5,))
    with pytest.raises(ConfigError, match="into which language"):
        NetAdapter(net).encode([[4, 0]], NetAdapter(net).new_cache(1, 4))


@pytest.mark.parametrize("name", TINY)
def test_targets_are_scored_behind_their_sources(name: str) -> None:
    net = tiny(name)
    targets = [[6, 8, 3, 0], [0], [9, 3, 3, 3, 3, 0]]
    lm = LanguageModel(NetAdapter(net), end_tokens=ENDS)
    for scored, source, target in zip(
        lm.score_pairs(list(zip(SOURCES, targets, strict=True))), SOURCES, targets, strict=True
    ):
        law = logits(net, source, [2, *target[:-1]]).log_softmax(-1)
        wanted = law.gather(-1, torch.tensor(target).unsqueeze(-1)).squeeze(-1)
        assert scored.tokens == [2, *target] and scored.log_probs[0] is None
        assert torch.tensor(scored.log_probs[1:], dtype=torch.float64).allclose(wanted, rtol=1e-9)
        assert scored.log_prob == pytest.approx(float(wanted.sum())) and scored.num_scored == len(target)


def test_a_feature_of_phrase_pairs_reorders_candidates() -> None:
    ranked = rescored(["a", "b", "c"], [-1.0, -1.5, -4.0], [-9.0, -2.0, -1.0], weight=0.5)
    assert [text for text, _ in ranked] == ["b", "c", "a"] and ranked[0][1] == pytest.approx(-2.5)
    assert rescored(["a", "b"], [-1.0, -1.5], [-9.0, -2.0], weight=0.0)[0][0] == "a"
    lm = LanguageModel(NetAdapter(tiny("gru")), end_tokens=ENDS)
    for pairs, message in (([([], [0])], "empty"), ([([4], [0] * 65)], "context"), ([([4], [99])], "vocabulary")):
        with pytest.raises(ConfigError, match=message):
            lm.score_pairs(pairs)


@pytest.mark.parametrize("name", TINY)
def test_every_way_of_decoding_writes_the_plain_text(name: str) -> None:
    net = tiny(name)
    wanted = [written(net, source, 14) for source in SOURCES]
    assert len({tuple(text) for text in wanted}) > 1, "the source is not read"
    lm = LanguageModel(NetAdapter(net), end_tokens=ENDS)
    models = {"draft": NetAdapter(tiny(name, seed=1))}
    for method in ("autoregressive", "prompt-lookup", "token-recycling", "jacobi"):
        found = lm.generate(SOURCES, method=method, max_tokens=14)
        assert [result.tokens for result in found] == wanted, method
    assert [r.tokens for r in lm.generate(SOURCES, method="draft-model", models=models, max_tokens=14)] == wanted
    alone = lm.generate(SOURCES[0], max_tokens=14, temperature=1.0, seed=3)
    for method in ("prompt-lookup", "token-recycling"):
        drawn = lm.generate(SOURCES, method=method, max_tokens=14, temperature=1.0, seed=3)
        assert drawn[0].tokens == alone.tokens, method


def test_phrases_sum_over_every_segmentation_and_are_written_in_one_pass() -> None:
    net = tiny("phrases")
    sources, targets = [[5, 9, 3, 0], [4, 0]], [[6, 8, 3, 11, 8], [7, 7, 1]]
    is_real = torch.tensor([[True] * 4, [True, True, False, False]])
    padded = torch.tensor([sources[0], [*sources[1], 0, 0]])
    inputs = torch.tensor([[2, *targets[0]], [2, *targets[1], 0, 0]])
    with torch.no_grad():
        found = net.log_likelihood(padded, is_real, inputs, torch.tensor([5, 3]))
        wanted = [brute_force(net, *pair) for pair in zip(sources, targets, strict=True)]
    assert (found - torch.stack(wanted)).abs().max() < 1e-10


def brute_force(net: Any, source: list[int], target: list[int]) -> Tensor:
    """Return log p(target | source), by running every way to cut the target into phrases, word by word."""
    ids, most = torch.tensor([source]), net.config.longest
    opened = net.encode(ids, torch.ones_like(ids, dtype=torch.bool))[1][0]
    history = [torch.zeros(1, net.config.hidden, dtype=torch.float64)]
    for token in [2, *target]:
        history.append(net.history(net.embedding(torch.tensor([token])), history[-1]))
    ways = []
    for lengths in itertools.product(range(most + 1), repeat=len(source)):
        if sum(lengths) != len(target):
            continue
        total, place = torch.zeros((), dtype=torch.float64), 0
        for at, length in enumerate(lengths):
            state = torch.tanh(opened[at : at + 1] + net.from_history(history[place + 1]))
            for token in target[place : place + length]:
                total = total + net._law(state)[0][0, token]
                state = net.writer(net.embedding(torch.tensor([token])), state)
            if length < most:
                total = total + net._law(state)[1][0]
            place += length
        ways.append(total)
    return torch.stack(ways).logsumexp(0)


def test_phrases_are_a_law_and_decoding_reads_the_source_once() -> None:
    """Summed over every target that a source may write, probabilities are 1; greedy texts walk from left to right."""
    torch.manual_seed(0)
    kind = find_kind("phrases")
    net = kind(kind.Config(vocab_size=3, width=4, hidden=4, longest=1)).double().eval()
    targets = [list(t) for n in range(3) for t in itertools.product(range(3), repeat=n)]
    with torch.no_grad():
        total = torch.stack([brute_force(net, [1, 0], target) for target in targets]).exp().sum()
        inputs = [torch.tensor([[2, *target]]) for target in targets]
        is_real = torch.ones(1, 2, dtype=torch.bool)
        sums = [net.log_likelihood(torch.tensor([[1, 0]]), is_real, i, torch.tensor([i.shape[1] - 1])) for i in inputs]
    assert total == pytest.approx(1, abs=1e-12) and torch.cat(sums).exp().sum() == pytest.approx(1, abs=1e-12)
    net = tiny("phrases")
    text = written(net, SOURCES[0], 40)
    walked = net.writers(SOURCES[0], text[:-1])
    assert text[-1] == 0 and walked == sorted(walked) and max(map(walked.count, walked)) <= 3
    assert max(walked) < len(SOURCES[0])
