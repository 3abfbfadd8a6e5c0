"""Recorded forwards, on a tape that stands in for a CUDA graph: equal to plain ones, whatever changes between two."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import tape
import torch
from test_transformer import random_spec, random_weights
from torch._subclasses.fake_tensor import FakeTensorMode

import outpace
from outpace.cache import Cache
from outpace.errors import ConfigError
from outpace.models import graphs as module
from outpace.models.attention import additive, attend, attend_folded
from outpace.models.graphs import FIRST_EXTENT, MOST_GRAPHS, PATIENCE, Graphs, extent_for, make_graphs
from outpace.models.spec import Spec
from outpace.models.transformer import Transformer
from outpace.types import NO_OUTPUTS, Outputs, Scores

SPECS = {
    "causal": {},
    "windows": {"windows": (None, 5), "attn_softcap": 30.0, "final_softcap": 20.0},
    "learned": {"positions": "learned", "rotary_dim": 8, "norm": "layer"},
    "block": {"attention": "block", "block_size": 4, "mask_id": 30},
    "full": {"attention": "full", "mask_id": 30, "logits_shift": True},
    "causal-block": {
        "attention": "causal-block",
        "block_size": 4,
        "mask_id": 30,
        "query_growth": 0.4,
        "query_period": 5,
    },
}


def pair(more: dict[str, object], mode: str = "on") -> tuple[Transformer, Transformer]:
    """The same random model twice: run plainly, and recorded on tapes."""
    spec = random_spec(**more)
    models = []
    for _ in range(2):
        torch.manual_seed(3)
        weights = random_weights(spec)
        if spec.positions == "learned":
            weights.positions = torch.randn(spec.max_positions, spec.hidden_size)
        models.append(Transformer(spec, weights, pack=False))
    models[1].use_graphs(Graphs(mode, tape.record))
    assert [model.path for model in models] == ["torch", "graphs"]  # measured costs are kept apart
    return models[0], models[1]


def filled(model: Transformer, lengths: list[int], slots: int = 48) -> Cache:
    """A cache whose rows hold random entries, the same for every model; what is not valid is not zero either."""
    cache = model.new_cache(len(lengths), slots)
    source = torch.Generator().manual_seed(5)
    for buffer in cache.buffers:
        rows, heads, _, dim = buffer.shape  # a recorded model's caches are larger
        buffer.fill_(3.0)[:, :, :slots] = torch.randn(rows, heads, slots, dim, generator=source)
    cache.lengths = list(lengths)
    return cache


def same(ours: Scores, plain: Scores) -> None:
    torch.testing.assert_close(ours.logits, plain.logits, rtol=0, atol=1e-5)
    assert ours.taps.keys() == plain.taps.keys()
    for layer, states in plain.taps.items():
        torch.testing.assert_close(ours.taps[layer], states, rtol=0, atol=1e-5)
    assert (ours.last is None) == (plain.last is None)
    if plain.last is not None:
        torch.testing.assert_close(ours.last, plain.last, rtol=0, atol=1e-5)


def given(spec: Spec, lengths: list[int], size: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and positions of a forward, the last of a row being padding where rows differ."""
    source = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, spec.vocab_size, (len(lengths), size), generator=source)
    position = torch.tensor(lengths)[:, None] + torch.arange(size)
    if size > 1 and len(set(lengths)) > 1:
        position[0, -1] = -1
    return tokens, position


def tree(rows: int, size: int, seed: int) -> torch.Tensor:
    """Nodes that see the root, themselves and an earlier node or none."""
    source = torch.Generator().manual_seed(seed)
    seen = torch.eye(size, dtype=torch.bool).repeat(rows, 1, 1)
    seen[:, :, 0] = True
    for node in range(2, size):
        seen[:, node] |= seen[:, int(torch.randint(0, node, (), generator=source))]
    return seen


@pytest.mark.parametrize("name", SPECS)
def test_a_replay_is_the_plain_forward_on_other_inputs(name: str) -> None:
    """Tokens, positions, lengths and trees change in the graph's own tensors; its Python never runs again."""
    plain, recorded = pair(SPECS[name])
    assert recorded.graphs is not None
    outputs, num = Outputs((0, 2), True), 0
    for rows, size, is_tree in ((1, 1, False), (1, 6, True), (3, 4, False), (2, 5, True)):
        caches = [filled(model, [0] * rows) for model in (plain, recorded)]
        for step in range(3):
            # Rows of one length, then ragged ones, then others: one graph serves them all.
            lengths = [4 + step + row * (step % 2) * 3 for row in range(rows)]
            tokens, position = given(plain.spec, lengths, size, step)
            seen = tree(rows, size, step) if is_tree else None
            ask = torch.tensor([[0, size - 1 - step % size]]).expand(rows, -1)
            scores = []
            for model, cache in zip((plain, recorded), caches, strict=True):
                cache.lengths = list(lengths)
                scores.append(model.score(tokens, position, seen, cache, ask, outputs, skip=[1] if is_tree else ()))
            same(scores[1], scores[0])
            for ours, theirs in zip(caches[1].buffers, caches[0].buffers, strict=True):
                # Staged entries too; a recorded model's caches are larger.
                torch.testing.assert_close(ours[:, :, :48], theirs, rtol=0, atol=1e-5)
        num += 1
        assert recorded.graphs.num_recorded == num
    assert recorded.graphs.num_replayed == 2 * num
    assert not recorded.graphs.fault


def test_replayed_scores_are_the_callers_own() -> None:
    _, model = pair({})
    cache, (tokens, position) = filled(model, [3]), given(model.spec, [3], 2, 0)
    first = model.score(tokens, position, None, cache).logits
    kept = first.clone()
    for _ in range(2):
        again = model.score(tokens, position, None, cache).logits
        assert torch.equal(again, kept)
        again.fill_(9.0)


def test_a_graph_is_one_caches_and_one_shapes() -> None:
    _, model = pair({})
    assert model.graphs is not None
    tokens, position = given(model.spec, [3], 2, 0)
    first, second = filled(model, [3]), filled(model, [3])
    for cache in (first, second, first):
        model.score(tokens, position, None, cache)
    assert (model.graphs.num_recorded, model.graphs.num_replayed) == (2, 1)
    first.has_fixed_extent = True  # other slots are looked at only where there are more of them
    model.score(tokens, position, None, first)
    assert model.graphs.num_recorded == 2
    trimmed = model.trim_head(torch.tensor([4, 7]))
    logits = model.score(tokens, position, None, first).logits
    for _ in range(2):
        ours = trimmed.score(tokens, position, None, first).logits
        torch.testing.assert_close(ours, logits[:, :, [4, 7]], rtol=0, atol=1e-5)


def test_caches_of_recorded_models_have_few_sizes() -> None:
    plain, model = pair({})
    sizes = {model.new_cache(2, capacity).buffers[0].shape for capacity in (3, 90, FIRST_EXTENT)}
    assert sizes == {(2, 2, FIRST_EXTENT, 8)}
    assert model.new_cache(1, 5000).capacity == 5120 and plain.new_cache(1, 5000).capacity == 5000
    buffers = model.new_cache(1, 9).buffers
    assert len({buffer.untyped_storage().data_ptr() for buffer in buffers}) == 1


def test_soft_inputs_and_long_forwards_are_run_plainly() -> None:
    plain, model = pair({"attention": "causal"})
    assert model.graphs is not None
    tokens, position = given(model.spec, [0], 6, 0)
    soft = model.embed(tokens)
    same(
        model.score(tokens, position, None, filled(model, [0]), inputs=soft),
        plain.score(tokens, position, None, filled(plain, [0])),
    )
    assert not model.graphs.num_recorded and not model.graphs.num_plain


def test_patience_and_bounds() -> None:
    graphs, value = Graphs("auto", tape.record), torch.ones(2)
    for _ in range(PATIENCE + 1):
        assert graphs.run("a", lambda x: (2 * x,), (value,))[0].tolist() == [2.0, 2.0]
    assert (graphs.num_plain, graphs.num_recorded, graphs.num_replayed) == (PATIENCE, 1, 1)
    eager = Graphs("on", tape.record)
    for number in range(MOST_GRAPHS + 1):
        eager.run(number, lambda x: (2 * x,), (value,))
    eager.run(0, lambda x: (2 * x,), (value,))  # the oldest was dropped: recorded anew
    assert (eager.num_recorded, eager.num_replayed) == (MOST_GRAPHS + 2, 0)
    assert extent_for(3, 1024) == FIRST_EXTENT
    assert [extent_for(used, 1500) for used in (257, 512, 1400)] == [512, 512, 1500]


def test_recording_is_given_up_where_it_fails() -> None:
    """A forward that waits for the device, and one whose replay is wrong: the right result, and a reason."""
    refused = Graphs("on", tape.record)
    waits: Callable[..., tuple[torch.Tensor, ...]] = lambda x: (x * float(x.sum()),)  # noqa: E731
    assert refused.run("a", waits, (torch.ones(2),))[0].tolist() == [2.0, 2.0]
    assert "given up" in refused.fault and "waits for the device" in refused.fault
    assert refused.run("a", waits, (torch.full((2,), 3.0),))[0].tolist() == [18.0, 18.0]
    calls = []

    def fickle(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        calls.append(1)
        return (x * len(calls),)

    wrong = Graphs("on", tape.record)
    assert wrong.run("a", fickle, (torch.ones(2),))[0].tolist() == [1.0, 1.0]
    assert "replay" in wrong.fault and not wrong.num_recorded


def test_a_tape_finds_what_depends_on_values() -> None:
    """The stand-in itself: a length read on the host while recording is replayed as it was."""
    lengths = [1]
    value = torch.arange(4.0)
    recorded, (out,) = tape.record(lambda: (value * lengths[0],), None)
    lengths[0] = 5
    value += 1
    recorded.replay()
    assert out.tolist() == [1.0, 2.0, 3.0, 4.0]


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
@pytest.mark.parametrize("name", ["causal", "full"])
def test_recorded_forwards_never_look_at_values(name: str) -> None:
    with FakeTensorMode():
        model = pair(SPECS[name])[1]
        model.use_graphs(
            Graphs("auto", tape.record)
        )  # fake tensors cannot be recorded: the forward that would be is run
        for lengths in ([5], [3, 8]):
            cache = model.new_cache(len(lengths), 32)
            cache.lengths = lengths
            tokens = torch.zeros(len(lengths), 4, dtype=torch.int64)
            assert model._can_record(4)
            shape = model._run_recorded(model.graphs, tokens, tokens, None, cache, None, NO_OUTPUTS, ()).logits.shape
            assert shape == (len(lengths), 4, 31)


def test_folded_heads_are_the_same_attention() -> None:
    source = torch.Generator().manual_seed(0)
    query = torch.randn(2, 5, 6, 8, generator=source, dtype=torch.float64)
    key, value = (torch.randn(2, 3, 9, 8, generator=source, dtype=torch.float64) for _ in range(2))
    for shape in ((5, 9), (2, 1, 5, 9)):
        mask = additive(torch.rand(shape, generator=source) < 0.7, query)
        mask[..., 0] = 0
        wanted = attend(query, key, value, mask, False, 0.3, 0.0)
        torch.testing.assert_close(attend_folded(query, key, value, mask, 0.3), wanted, rtol=0, atol=1e-12)


def test_graphs_are_refused_where_there_are_none(tiny: Path) -> None:
    with pytest.raises(ConfigError, match="no CUDA graphs on cpu"):
        outpace.load(tiny, device="cpu", graphs="on")
    with pytest.raises(ConfigError, match="no CUDA graphs on cpu"):
        make_graphs("on", torch.device("cpu"))
    with pytest.raises(ConfigError, match="graphs is 'always'"):
        make_graphs("always", torch.device("cuda"))
    assert make_graphs("auto", torch.device("cpu")) is None
    assert make_graphs("off", torch.device("cuda")) is None
    made = make_graphs("auto", torch.device("cuda"))
    assert made is not None and made.record.func is module.record_on_cuda  # type: ignore[attr-defined]


@pytest.mark.parametrize("method", ["suffix", "token-recycling", "auto"])
def test_a_text_is_the_same_with_recorded_forwards(tiny: Path, method: str) -> None:
    prompts = ["the quick brown fox jumps over the quick", "the lazy dog sleeps and the lazy"]
    plain = outpace.load(tiny, dtype="float64", is_compiled=False)
    recorded = outpace.load(tiny, dtype="float64", is_compiled=False)
    recorded.target.graphs = graphs = Graphs("auto", tape.record)  # type: ignore[attr-defined]
    arguments = {"max_tokens": 24, "temperature": 0.7, "ignore_eos": True}
    ours = recorded.generate(prompts, method=method, **arguments)
    assert [result.tokens for result in ours] == [result.tokens for result in plain.generate(prompts, **arguments)]
    assert graphs.num_replayed > 0 and not graphs.fault
