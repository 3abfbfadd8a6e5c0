"""Masks behind a causal text: what blocks of one are, and that rows, caches and positions do not show in the text."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch

from outpace.api.engine import LanguageModel
from outpace.errors import CapabilityError, ConfigError
from outpace.heads.lowrank import own_masks
from outpace.methods.speculative.open_places import OpenPlaces
from outpace.methods.speculative.set_block import SetBlock, bounded
from outpace.methods.speculative.space import Space
from outpace.methods.speculative.wedlm import WeDlm
from outpace.run.layout import lay_out
from outpace.sampling import Sampling
from outpace.testing.grammar import ToyGrammar
from outpace.testing.toy import ToyModel
from outpace.testing.world import drive, make_rows, make_run, write
from outpace.train.objectives_block import set_block_canvas
from outpace.types import Proposal

PROMPTS = [[3, 5, 7], [2, 9], [4, 4, 8, 1, 6, 3]]
SIZE = 19
Laws = dict[int, tuple[torch.Tensor, float]]  # by open place, and the chance of the token drawn there


def prefix(laws: Laws) -> list[int]:
    return list(itertools.takewhile(lambda at: at == 0 or laws[at][1] >= 0.2, sorted(laws)))


def entropies(laws: Laws) -> dict[int, float]:
    return {at: float(-sum(p * p.log() for p in law if p > 0)) for at, (law, _) in laws.items()}


def bound(laws: Laws) -> list[int]:
    entropy, gamma = entropies(laws), 2.5
    sets = [list(one) for n in range(len(laws), 0, -1) for one in itertools.combinations(laws, n)]
    fits = [one for one in sets if len(one) == 1 or sum(entropy[i] for i in one) - max(map(entropy.get, one)) <= gamma]  # type: ignore[type-var, arg-type]
    return min((one for one in fits if len(one) == len(fits[0])), key=lambda one: sum(entropy[i] for i in one))


def streamed(laws: Laws) -> list[int]:
    weight = {at: own + 0.1 * at for at, own in entropies(laws).items()}
    return [at for at in weight if weight[at] < 1.8] or [min(weight, key=weight.__getitem__)]


METHODS: list[tuple[OpenPlaces, Callable[[Laws], list[int]]]] = [
    (SetBlock(block=4, choice="entropy", gamma=2.5), bound),
    (SetBlock(block=4, choice="prefix", threshold=0.2), prefix),
    (WeDlm(block=4, threshold=1.8, penalty=0.1), streamed),
]
IDS = ["entropy", "prefix", "wedlm"]


def model(is_block: bool = False) -> LanguageModel:
    """A toy with a mask behind causal text, or with blocks in both directions."""
    target = ToyModel(seed=4)
    if is_block:
        target.mask_token = None  # type: ignore[assignment]
    return LanguageModel(target)


def spelled(
    text: list[int], method: OpenPlaces, choose: Callable[[Laws], list[int]], is_block: bool = False
) -> tuple[list[int], int]:
    """The same text without any cache, and its steps: every step reads the whole text and the window anew."""
    target = ToyModel(seed=4)
    written, window, steps = list[int](), list[int](), 0
    while len(written) < SIZE:
        if not window or method.slides:
            window += [-1] * (min(method.block, SIZE - len(written)) - len(window))
        size, known = len(text) + len(written), [at for at, token in enumerate(window) if token >= 0]
        masks = [at for at, token in enumerate(window) if token < 0 and (known or at or is_block)]
        tokens = [*text, *written, *(window[at] for at in known), *[target.mask_token] * len(masks)]
        places = [*range(size), *(size + at for at in known), *(size + at - (not is_block) for at in masks)]
        sight = torch.ones(1, len(tokens), len(tokens), dtype=torch.bool).tril()
        if is_block:
            sight[:, size:] = True
        given = (torch.tensor([tokens]), torch.tensor([places]), sight, target.new_cache(1, 64))
        logits = target.score(*given).logits[0]
        laws = {0: logits[size - 1].softmax(-1)}
        for number, at in enumerate(masks):
            if at or known:  # the text says the first place as long as nothing behind it is decided
                laws[at] = logits[size + len(known) + number].softmax(-1)
        drawn = {
            at: int((law if at == 0 and not known else law[: target.mask_token]).argmax()) for at, law in laws.items()
        }
        for at in choose({at: (law, float(law[drawn[at]])) for at, law in sorted(laws.items())}):
            window[at] = drawn[at]
        count = len(list(itertools.takewhile(lambda token: token >= 0, window)))
        written, window, steps = written + window[:count], window[count:], steps + 1
        if choose is prefix:
            window = []
    return written, steps


def test_blocks_in_which_nothing_is_sure_are_plain_decoding() -> None:
    asked = {"max_tokens": SIZE, "temperature": 0.8, "seed": 3, "repetition_penalty": 1.3}
    plain = model().generate(PROMPTS, **asked)
    found = model(is_block=True).generate(PROMPTS, method=SetBlock(threshold=1.0), **asked)
    assert [one.tokens for one in found] == [one.tokens for one in plain]


@pytest.mark.parametrize("method", [SetBlock(block=1, choice="entropy"), SetBlock(block=1), WeDlm(block=1)], ids=str)
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_block_of_one_is_plain_decoding(method: OpenPlaces, temperature: float) -> None:
    asked = {"max_tokens": SIZE, "temperature": temperature, "seed": 3, "repetition_penalty": 1.3}
    plain = model().generate(PROMPTS, **asked)
    found = model().generate(PROMPTS, method=method, **asked)
    assert [one.tokens for one in found] == [one.tokens for one in plain]


@pytest.mark.parametrize("is_block", [False, True], ids=["causal", "block"])
@pytest.mark.parametrize(("method", "choose"), METHODS, ids=IDS)
def test_ragged_rows_and_the_cache_do_not_show(
    method: OpenPlaces, choose: Callable[[Laws], list[int]], is_block: bool
) -> None:
    together = model(is_block).generate(PROMPTS, method=method, max_tokens=SIZE, temperature=0)
    for prompt, one in zip(PROMPTS, together, strict=True):
        wanted, steps = spelled(prompt, method, choose, is_block)
        assert one.tokens == wanted
        alone = model(is_block).generate(prompt, method=method, max_tokens=SIZE, temperature=0)
        assert alone.tokens == one.tokens
        assert steps < SIZE  # some steps write more than one token
        assert alone.usage.target_nfe <= steps + 1  # and the prompt


@pytest.mark.parametrize("method", [method for method, _ in METHODS], ids=IDS)
def test_the_prefixs_entries_are_those_of_reading_it_anew(method: OpenPlaces) -> None:
    rows, run = make_rows(), make_run(method)
    drive(run, rows, steps=7)
    rows, cache = run.batch.rows, run.batch.cache
    assert cache is not None and any(n > row.num_prompt + 2 for row, n in zip(rows, cache.lengths, strict=True))
    for row, length in enumerate(cache.lengths):
        text = torch.tensor([rows[row].tokens[:length]])
        fresh = run.target.new_cache(1, 64)
        run.target.score(text, torch.arange(length).unsqueeze(0), None, fresh)
        for ours, anew in zip(cache.buffers, fresh.buffers, strict=True):
            assert torch.allclose(ours[row, :length].double(), anew[0, :length].double(), atol=1e-12)


@pytest.mark.parametrize(
    "method",
    [SetBlock(threshold=0.05), SetBlock(choice="entropy", gamma=4), WeDlm(threshold=3)],
    ids=["prefix", "entropy", "wedlm"],
)
def test_places_are_drawn_given_those_before_them_where_a_constraint_asks(method: OpenPlaces) -> None:
    grammar = ToyGrammar(goal=80)
    settings = Sampling(temperature=1.3, repetition_penalty=1.4, constraint=grammar)
    target = model(is_block=True).target
    for row in [*write(method, settings), *write(method, settings, target=target)]:
        state = grammar.start()
        assert all(state.push(token) for token in row.written)
        assert row.usage.num_steps < len(row.written)


def test_refuses_what_it_cannot_write() -> None:
    with pytest.raises(ConfigError, match="0"):
        SetBlock(block=0)
    with pytest.raises(CapabilityError, match="model's context is 4096"):
        model().generate([1, 2], method=SetBlock(block=100_000), max_tokens=4)
    bare = ToyModel(seed=4)
    bare.mask_token = bare.own_mask = None  # type: ignore[assignment]
    with pytest.raises(ConfigError, match="names no mask token"):
        LanguageModel(bare).generate([1, 2], method=SetBlock(), max_tokens=4)


def test_a_training_block_sees_the_text_before_it_and_its_own_tokens_before_its_masks() -> None:
    tokens = torch.arange(2, 35).repeat(2, 1)
    canvas = set_block_canvas(tokens, 8, 1, 0)
    assert canvas.pieces is not None and canvas.positions is not None
    sight = torch.zeros(64, 64, dtype=torch.bool)
    for start, stop, ranges, visible in canvas.pieces:
        columns = torch.cat([torch.arange(a, b) for a, b in ranges])
        sight[start:stop, columns] = visible
    for row, column in itertools.product(range(64), range(64)):
        if row >= 32:
            assert sight[row, column] == (32 <= column <= row)
        elif column < 32:
            assert sight[row, column] == (column <= row and row // 8 == column // 8)
        else:
            assert sight[row, column] == (column - 32 <= row // 8 * 8)
    is_mask = canvas.inputs == 1
    for row in range(2):
        for block in range(4):
            entries = is_mask[row, 8 * block : 8 * block + 8].tolist()
            assert entries == sorted(entries)  # the masks come last
        for entry in range(32):  # a token that is shown stands where it stands in the text
            place = canvas.positions[entry]
            assert is_mask[row, entry] or canvas.inputs[row, entry] == tokens[row, place]
    # Every asked output says the token behind its position, and is a mask's or the text's.
    for place, token, weight in zip(canvas.outputs, canvas.targets, canvas.weights, strict=True):
        row, entry = divmod(int(place), 64)
        if weight > 0:
            assert is_mask[row, entry] or entry >= 32
            assert token == tokens[row, canvas.positions[entry] + 1]
    assert float(canvas.weights.sum()) == pytest.approx(1)


def test_bounded_takes_the_largest_set_that_the_bound_allows() -> None:
    entropy = [0.3, 0.05, 0.9, 0.02, 0.2]
    for gamma in (0.0, 0.04, 0.06, 0.08, 0.3, 0.6, 5.0):
        found = set(bounded(entropy, gamma))
        sets = [set(one) for n in range(1, 6) for one in itertools.combinations(range(5), n)]
        allowed = [
            one for one in sets if len(one) == 1 or sum(entropy[i] for i in one) - max(entropy[i] for i in one) <= gamma
        ]
        assert len(found) == max(map(len, allowed))
        assert found in allowed


def test_a_target_with_a_mask_of_its_own_needs_no_drafter_to_be_drafted_for_exactly() -> None:
    lm = model()
    for asked in ({"temperature": 0.0}, {"temperature": 0.8, "seed": 3, "repetition_penalty": 1.3}):
        plain = lm.generate(PROMPTS, max_tokens=SIZE, **asked)
        found = lm.generate(PROMPTS, method="space", max_tokens=SIZE, **asked)
        assert [one.tokens for one in found] == [one.tokens for one in plain]
    assert sum(one.usage.num_proposed for one in found) > 0
    # What the drafts come from is what a forward with masks in its window says there.
    run = make_run(Space(draft_len=2), models={"draft": own_masks(lm.target)}, target=lm.target)
    rows = make_rows(PROMPTS)[:1]
    drive(run, rows, steps=1)
    text, mask = rows[0].tokens[: rows[0].num_prompt], lm.target.mask_token
    size = len(text)
    read = lm.target.score(
        torch.tensor([[*text, mask, mask, mask]]), torch.arange(size + 3).unsqueeze(0), None, lm.target.new_cache(1, 64)
    ).logits[0, size:]
    assert torch.allclose(run.batch.state.drafter.told[0], read, atol=1e-9)
    with pytest.raises(CapabilityError, match="names no mask token"):
        bare = ToyModel(seed=4)
        bare.mask_token = bare.own_mask = None  # type: ignore[assignment]
        own_masks(bare)


def test_a_target_with_blocks_of_its_own_drafts_and_checks_in_one_forward() -> None:
    lm = model(is_block=True)
    for asked in ({"temperature": 0.0}, {"temperature": 0.8, "seed": 3, "repetition_penalty": 1.3}):
        plain = model().generate(PROMPTS, max_tokens=SIZE, **asked)
        found = lm.generate(PROMPTS, method="space", max_tokens=SIZE, **asked)
        assert [one.tokens for one in found] == [one.tokens for one in plain]
        assert sum(one.usage.num_proposed for one in found) > 0
        assert all(one.usage.draft_nfe == 0 for one in found)
    # After a step, the drafts come from a block of masks behind the last accepted node, which sees all of itself.
    run = make_run(Space(draft_len=2), models={"draft": own_masks(lm.target)}, target=lm.target)
    drive(run, make_rows(PROMPTS), steps=2)
    drafter, mask = run.batch.state.drafter, lm.target.own_mask
    for row, told in zip(run.batch.rows, drafter.told, strict=True):
        size, count = len(row.tokens) - 1, len(told) + 1
        tokens = [*row.tokens[:size], *[mask] * count]
        sight = torch.ones(1, len(tokens), len(tokens), dtype=torch.bool).tril()
        sight[:, size:] = True
        place = torch.arange(len(tokens)).unsqueeze(0)
        law = lm.target.score(torch.tensor([tokens]), place, sight, lm.target.new_cache(1, 64)).logits[0, size + 1 :]
        assert torch.allclose(told, law, atol=1e-9)


@pytest.mark.parametrize("lengths", [[2, 2], [2, 1]])
def test_a_chain_with_positions_of_its_own_is_laid_out_with_its_mask(lengths: list[int]) -> None:
    """Adapters take the positions of a chain for granted where nothing says who sees whom."""
    tokens, position = torch.tensor([[5, 6], [7, 8]]), torch.tensor([[5, 3], [4, 4]])
    layout = lay_out([[1, 2], [3, 4]], [2, 2], Proposal(tokens, lengths, position=position))
    assert layout.visible is not None
    for row, count in enumerate(lengths):
        size = 2 + count
        assert layout.position[row].tolist()[:size] == [2, 3, *position[row].tolist()][:size]
        assert torch.equal(layout.visible[row, :size, :size], torch.ones(size, size, dtype=torch.bool).tril())
