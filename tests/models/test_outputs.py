"""Hidden states, embedding and head of every adapter, against transformers' `hidden_states` in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from masked_layouts import LAYOUTS, oracle_output, written
from shapes import CASES, in_float64, saved
from test_hf import CASES as HF_CASES
from test_hf import ENCODED, NO_TREE, PROMPTS, adapter, new_cache
from torch import Tensor

from outpace.errors import CapabilityError
from outpace.models.loading import load_model
from outpace.testing.toy import ToyModel
from outpace.types import Adapter, Outputs, Scores

# Two branches behind a root: node 0, its children 1 and 3, their children 2 and 4.
PARENT = [-1, 0, 1, 0, 3]
NODES = [21, 22, 23, 24, 25]


def every(target: Adapter) -> Outputs:
    return Outputs(tuple(range(target.capabilities.num_layers + 1)), has_last=True)


def close(ours: Tensor, theirs: Tensor) -> None:
    assert (ours - theirs).abs().max() <= 1e-9 * theirs.abs().max()


def path_to(node: int) -> list[int]:
    return [] if node < 0 else [*path_to(PARENT[node]), node]


def in_pieces(target: Adapter, cache: Any, ids: list[int]) -> tuple[Scores, Scores]:
    """Score the first eight tokens in chunks of three, then five nodes of a tree (or a chain) behind them."""
    parts = []
    for start in (0, 3, 6):
        piece = ids[start : min(start + 3, 8)]
        position = torch.arange(start, start + len(piece))[None]
        parts.append(target.score(torch.tensor([piece]), position, None, cache, outputs=every(target)))
        cache.keep([range(len(piece))])
    prompt = Scores(
        torch.cat([part.logits for part in parts], 1),
        {layer: torch.cat([part.taps[layer] for part in parts], 1) for layer in parts[0].taps},
        {},
        torch.cat([part.last for part in parts if part.last is not None], 1),
    )
    visible, depth = None, list(range(5))
    if target.capabilities.has_tree:
        visible = torch.zeros(1, 5, 5, dtype=torch.bool)
        for node in range(5):
            visible[0, node, path_to(node)] = True
        depth = [len(path_to(node)) - 1 for node in range(5)]
    position = torch.tensor([[8 + step for step in depth]])
    tree = target.score(torch.tensor([NODES]), position, visible, cache, outputs=every(target))
    return prompt, tree


def check(target: Adapter, cache: Any, ids: list[int], states_of: Any, first: int = 0) -> None:
    """`states_of(text)` returns transformers' hidden states [1, T, hidden] of a text, from layer `first` on."""
    prompt, tree = in_pieces(target, cache, ids[:8])
    layers = target.capabilities.num_layers
    for node in range(-1, 5):
        path = path_to(node) if target.capabilities.has_tree else list(range(node + 1))
        theirs = states_of(ids[:8] + [NODES[each] for each in path])
        ours, at = (prompt, slice(0, 8)) if node < 0 else (tree, slice(node, node + 1))
        where = slice(0, 8) if node < 0 else slice(7 + len(path), 8 + len(path))
        for layer, states in enumerate(theirs[:layers], first):
            close(ours.taps[layer][:, at], states[:, where])
    for scores in (prompt, tree):
        assert scores.last is not None and scores.taps[layers].shape == scores.last.shape
        close(target.head(scores.last), scores.logits)
    asked = torch.tensor([[4, 1]])
    some = target.score(
        torch.tensor([ids[:6]]), torch.arange(6)[None], None, fresh(target, cache), asked, Outputs((1,), True)
    )
    assert list(some.taps) == [1] and some.last is not None and prompt.last is not None
    close(some.taps[1], prompt.taps[1][:, [4, 1]])
    close(some.last, prompt.last[:, [4, 1]])


def fresh(target: Adapter, cache: Any) -> Any:
    empty = target.new_cache(1, 24)
    empty.extra = cache.extra
    return empty


@pytest.mark.parametrize("case", CASES)
def test_native_states_are_those_of_transformers(case: str, model_root: Path) -> None:
    directory, theirs = saved(case, model_root)
    target = load_model(directory, "float64")

    def states_of(text: list[int]) -> Any:
        with in_float64(), torch.no_grad():
            return theirs(torch.tensor([text]), use_cache=False, output_hidden_states=True).hidden_states

    ids = torch.randint(3, 120, (8,), generator=torch.Generator().manual_seed(5)).tolist()
    check(target, target.new_cache(1, 24), ids, states_of)
    whole = target.score(
        torch.tensor([ids]), torch.arange(8)[None], None, target.new_cache(1, 8), outputs=every(target)
    )
    assert whole.last is not None
    if theirs.config.model_type != "opt" or target.weights.project_out is None:  # whose own last state is projected
        close(whole.last, states_of(ids)[-1])


@pytest.mark.parametrize("case", ["llama", "gpt2", "gemma2"])
def test_a_skipped_layer_passes_what_enters_it(case: str, model_root: Path) -> None:
    target = load_model(saved(case, model_root)[0], "float64")
    call = (torch.tensor([[3, 5, 7]]), torch.arange(3)[None], None)
    plain = target.score(*call, target.new_cache(1, 4), outputs=every(target))
    skipped = target.score(*call, target.new_cache(1, 4), outputs=every(target), skip=(1,))
    assert torch.equal(skipped.taps[1], plain.taps[1]) and torch.equal(skipped.taps[2], skipped.taps[1])
    assert not torch.equal(plain.taps[2], plain.taps[1])


@pytest.mark.parametrize("name", LAYOUTS)
def test_masked_states_are_those_of_transformers_with_an_explicit_mask(name: str, model_root: Path) -> None:
    directory, theirs = written(name, model_root)
    target = load_model(directory, "float64")
    ids = torch.randint(3, 60, (2, 16), generator=torch.Generator().manual_seed(5))
    states = oracle_output(name, theirs, ids, output_hidden_states=True).hidden_states
    position = torch.arange(16).expand(2, -1)
    ours = target.score(ids, position, None, target.new_cache(2, 16), outputs=every(target))
    for layer in range(target.capabilities.num_layers):
        close(ours.taps[layer], states[layer])
    read = states[-1] if not LAYOUTS[name].is_shifted else torch.cat([states[-1][:, :1], states[-1][:, :-1]], 1)
    assert ours.last is not None
    close(ours.last, read)
    close(target.head(ours.last), ours.logits)


@pytest.mark.parametrize("case", HF_CASES)
def test_wrapped_states_are_those_of_transformers(case: str, exact_softmax: None) -> None:
    target = adapter(case)
    assert target.capabilities.has_hidden is (case not in HIDES)
    assert target.capabilities.has_tree is (case not in NO_TREE)
    if case in HIDES:
        with pytest.raises(CapabilityError, match="hidden states"):
            one = torch.tensor([[1]])
            target.score(one, one * 0, None, new_cache(case, 1, 4), outputs=Outputs((0,)))
        return

    def states_of(text: list[int]) -> Any:
        tokens, asked = torch.tensor([text]), {"use_cache": False, "output_hidden_states": True}
        with torch.no_grad():
            if case in ENCODED:
                source = torch.tensor([PROMPTS[0]])
                return target.model(input_ids=source, decoder_input_ids=tokens, **asked).decoder_hidden_states
            return target.model(input_ids=tokens, **asked).hidden_states

    check(
        target, new_cache(case, 1, 24), PROMPTS[2][:8], states_of, first=int(case == "mamba")
    )  # whose list leaves out the embeddings


HIDES = {"gemma3n"}  # several streams side by side, none of which is the hidden state


@pytest.mark.parametrize("attention", ["causal", "full", "block"])
def test_a_toy_shows_what_it_computes_with(attention: str) -> None:
    toy = ToyModel(attention=attention, logits_shift=attention == "full")
    call = (torch.tensor([[3, 5, 7]]), torch.arange(3)[None], None)
    scores = toy.score(*call, toy.new_cache(1, 4), outputs=every(toy))
    assert scores.last is not None and torch.equal(scores.taps[0], toy.embed(call[0]))
    assert torch.equal(toy.head(scores.last), scores.logits)
    read = scores.taps[3] if attention != "full" else scores.taps[3][:, [0, 0, 1]]
    assert torch.equal(scores.last, read)
    for asked, words in ((Outputs((4,)), "layer 4"), (Outputs(heads=("length",)), "no output")):
        with pytest.raises(CapabilityError, match=words):
            toy.score(*call, toy.new_cache(1, 4), outputs=asked)
