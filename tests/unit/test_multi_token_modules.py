"""Multi-token modules: drafts against a plain recomputation of the whole prefix, trees, ragged rows, and training."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from random_weights import make_weights
from torch import Tensor

from outpace.cache import Counter
from outpace.draft.reading import Drafter
from outpace.errors import ConfigError
from outpace.heads.leap import LeapNet
from outpace.heads.model import HeadModel, new_head
from outpace.heads.mtp import FastMtpNet, MtpNet
from outpace.heads.net import Batch, load_kind
from outpace.methods.autoregressive import Autoregressive
from outpace.methods.speculative.fast_mtp import FastMtp
from outpace.methods.speculative.headed import Headed
from outpace.methods.speculative.l_mtp import LMtp
from outpace.methods.speculative.mtp import Mtp
from outpace.models.spec import Rope, Spec
from outpace.models.transformer import Transformer
from outpace.run.tree import TokenTree
from outpace.testing.toy import ToyModel
from outpace.testing.world import make_rows, make_run, write
from outpace.types import Outputs

SPEC = Spec(
    vocab_size=29,
    hidden_size=16,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    ffn_size=24,
    max_positions=64,
    ropes=(Rope((1.0, 0.3, 0.1, 0.03)),),
)
TEXTS = [[3, 1, 4, 1, 5, 9, 2, 6], [7, 1, 8], [2, 7, 1, 8, 2, 8, 1, 8, 2, 8, 4, 5]]
CONVENTIONS = [{}, {"hidden_first": True, "zero_first": True, "kv_heads": 1, "has_head_norm": True}]


def target() -> Transformer:
    return Transformer(SPEC, make_weights(SPEC, torch.float64), pack=False)


def shaken(head: HeadModel, seed: int = 3) -> HeadModel:
    """Give all scales and matrices other values, so that none is left out unnoticed."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in head.net.parameters():
            weight += torch.randn(weight.shape, generator=generator, dtype=weight.dtype) * 0.3
    return head


def last_states(model: Transformer, text: list[int]) -> Tensor:
    """Return the target's last states [1, T, hidden] of a text."""
    tokens, place = torch.tensor([text]), torch.arange(len(text)).unsqueeze(0)
    scores = model.score(tokens, place, None, model.new_cache(1, 64), None, Outputs(has_last=True))
    assert scores.last is not None
    return scores.last


class Plain:
    """Every module over the whole prefix again, in plain torch, for one path of drafts at a time."""

    def __init__(self, head: HeadModel) -> None:
        self.head, self.net = head, head.net
        assert isinstance(self.net, MtpNet)

    def pass_over(self, k: int, tokens: Tensor, states: Tensor) -> Tensor:
        part, settings = self.net.layers[k], self.net._conventions()
        place = torch.arange(tokens.shape[1]).unsqueeze(0)
        embedded = self.head.embed(tokens)
        if settings.zero_first:
            embedded = embedded * (place > 0).unsqueeze(-1)
        pair = [part.enorm(embedded), part.hnorm(states)]
        x = part.eh_proj(torch.cat(pair[::-1] if settings.hidden_first else pair, -1))
        block, shape = part.mtp_block, self.net.shape
        y = block.input_layernorm(x)
        split = (1, tokens.shape[1], -1, shape.head_dim)
        query, key = block.self_attn.q_proj(y).view(split), block.self_attn.k_proj(y).view(split)
        if shape.has_head_norm:
            query, key = block.self_attn.q_norm(query), block.self_attn.k_norm(key)
        angle = place[0].double()[:, None] * self.net.turns.rope.frequencies(place[0], 0)
        cos, sin = angle.cos().repeat(1, 2)[:, None], torch.cat([-angle.sin(), angle.sin()], 1)[:, None]
        query, key = (z * cos + z.roll(shape.head_dim // 2, -1) * sin for z in (query, key))
        value = block.self_attn.v_proj(y).view(split)
        key, value = (z.repeat_interleave(shape.heads // shape.kv_heads, 2) for z in (key, value))
        scores = torch.einsum("bihd,bjhd->bhij", query, key) / shape.head_dim**0.5
        scores = scores.masked_fill(torch.ones_like(scores[0, 0]).triu(1) > 0, float("-inf"))
        mixed = torch.einsum("bhij,bjhd->bihd", scores.softmax(-1), value).flatten(2)
        x = x + block.self_attn.o_proj(mixed)
        y = block.post_attention_layernorm(x)
        mlp = block.mlp
        return part.post_norm(x + mlp.down_proj(torch.nn.functional.silu(mlp.gate_proj(y)) * mlp.up_proj(y)))

    def logits(self, model: Transformer, text: list[int], path: list[int]) -> Tensor:
        """Return the logits [V] after a text and some drafts; as many modules as steps, or one."""
        tokens, states = torch.tensor([text + path]), last_states(model, text[:-1])
        if len(self.net.layers) == 1:
            for step in range(len(path) + 1):
                out = self.pass_over(0, tokens[:, 1 : len(text) + step], states)
                states = torch.cat([states, out[:, -1:]], 1)
        else:
            for k in range(len(path) + 1):
                out = states = self.pass_over(k, tokens[:, 1 + k : len(text) + k], states)
        return self.head.head(out[0, -1])


def begun(head: HeadModel, texts: list[list[int]], kind: type[Headed] = Mtp) -> tuple[Drafter, object]:
    """Return the drafter after the prompts were read, and the run's view; nothing is drafted yet."""
    run = make_run(kind(), target=head.target, models={"draft": head}, capacity=60)
    seen = {}
    inner = run.method.__class__.propose

    class Watched(kind):
        def propose(self, view, state):
            seen["it"] = (state.drafter, view)
            return inner(self, view, state)

    run.method = Watched()
    run.join(make_rows(texts, max_tokens=30))
    while "it" not in seen:
        run.step()
    return seen["it"]


@torch.no_grad()
@pytest.mark.parametrize("settings", CONVENTIONS)
def test_every_node_of_a_tree_is_what_the_whole_prefix_gives(settings: dict) -> None:
    model = target()
    head = shaken(new_head("mtp", model, depth=4, **settings))
    drafter, view = begun(head, TEXTS)
    tree = TokenTree(
        torch.tensor([[4, 5, 6, 7, 8, 9]]).repeat(3, 1), torch.tensor([[-1, -1, 0, 1, 2, 2]]).repeat(3, 1), [6] * 3
    )
    plain, rows = Plain(head), range(3)
    root = drafter.texts(view, [4, 4, 4])
    for row in rows:
        torch.testing.assert_close(root[row], plain.logits(model, view.texts[row], []))
    paths = {0: [4], 1: [5], 2: [4, 6], 3: [5, 7], 4: [4, 6, 8], 5: [4, 6, 9]}
    for asked in ([0, 1], [2, 3], [4, 5], [1, 4]):  # level by level, and across levels
        nodes = torch.tensor([asked] * 3)
        found = drafter.nodes(tree, nodes, torch.ones_like(nodes, dtype=torch.bool))
        for row in rows:
            for slot, node in enumerate(asked):
                torch.testing.assert_close(found[row, slot], plain.logits(model, view.texts[row], paths[node]))


@torch.no_grad()
def test_nodes_that_were_never_asked_before_are_run_level_by_level() -> None:
    model = target()
    head = shaken(new_head("mtp", model))
    drafter, view = begun(head, TEXTS)
    drafter.texts(view, [4, 0, 4])
    tree = TokenTree(torch.tensor([[4, 6, 8]] * 3), torch.tensor([[-1, 0, 1]] * 3), [3, 0, 3])
    nodes = torch.tensor([[2]] * 3)
    found = drafter.nodes(tree, nodes, torch.tensor([[True], [False], [True]]))
    for row in (0, 2):
        torch.testing.assert_close(found[row, 0], Plain(head).logits(model, view.texts[row], [4, 6, 8]))


@torch.no_grad()
@pytest.mark.parametrize("modules", [1, 2])
def test_a_chain_is_what_the_whole_prefix_gives(modules: int) -> None:
    model = target()
    head = shaken(new_head("mtp", model, modules=modules, zero_first=True))
    drafter, view = begun(head, TEXTS)
    plain = Plain(head)
    found = [drafter.texts(view, [4, 4, 4])]
    drafts = [[11, 12, 13], [14, 15, 16], [17, 18, 19]]
    for step in range(3 if modules == 1 else 1):
        token, place = torch.tensor([d[step] for d in drafts]), torch.tensor(view.lengths) + step
        found.append(drafter.token(token, place, [True, row_is_on(step), True]))
    for row, path in enumerate(drafts):
        for step, logits in enumerate(found):
            if row != 1 or step < 2:  # the second row stops after one token
                torch.testing.assert_close(logits[row], plain.logits(model, view.texts[row], path[:step]))


def row_is_on(step: int) -> bool:
    return step < 1


@pytest.mark.parametrize("modules", [1, 2, 3])
@pytest.mark.parametrize("shape", [{}, {"budget": 9}, {"branches": (2, 2, 1, 1)}, {"accept_rule": "rejection"}])
def test_the_text_is_plain_decodings_whatever_was_drafted(modules: int, shape: dict) -> None:
    model = ToyModel()
    head = new_head("mtp", model, modules=modules)
    method = Mtp(draft_len=5, **shape)
    plain = [row.written for row in write(Autoregressive(), target=model)]
    assert [row.written for row in write(method, target=model, models={"draft": head})] == plain


def test_rows_side_by_side_draft_as_they_do_alone() -> None:
    model = target()
    head = shaken(new_head("mtp", model, modules=2))
    method = Mtp(draft_len=4, is_adaptive=False)

    def drafted(texts: list[list[int]]) -> list[list[tuple[int, ...]]]:
        found = [[] for _ in texts]
        run = make_run(method, target=model, models={"draft": head}, capacity=60)
        rows = make_rows(texts, max_tokens=10)
        run.join(rows)
        while run.rows:
            present = [rows.index(row) for row in run.rows]
            run.step()
            proposal = run.last.proposal
            for row, (at, n) in enumerate(zip(present, proposal.length, strict=True)):
                found[at].append(tuple(proposal.tokens[row, :n].tolist()))
        return [[drafts for drafts in row if drafts] for row in found]

    assert drafted(TEXTS) == [drafted([text])[0] for text in TEXTS]


def test_a_forward_is_run_for_each_draft_and_none_twice() -> None:
    model = target()
    head = new_head("mtp", model)
    drafter, view = begun(head, [TEXTS[0]])
    counter: Counter = drafter.cache.counter
    drafter.texts(view, [3])
    before = counter.nfe
    tree = TokenTree(torch.tensor([[4, 5]]), torch.tensor([[-1, 0]]), [2])
    for node in (0, 0, 1, 1):
        drafter.nodes(tree, torch.tensor([[node]]), torch.tensor([[True]]))
    assert counter.nfe == before + 2


class FrozenTarget:
    """The target's embeddings and output matrix."""

    ids = None

    def __init__(self, model: Transformer) -> None:
        self.table, self.matrix = model.weights.embed.float(), model.weights.head.dense().float()

    def embed(self, tokens: Tensor) -> Tensor:
        return self.table[tokens]

    def logits(self, hidden: Tensor) -> Tensor:
        return hidden @ self.matrix.T


def periodic_batch(model: Transformer) -> Batch:
    """Return a text of period 7 with the target's states of it."""
    text = [1 + (3 * i) % 7 for i in range(40)]
    states = last_states(model, text).float()
    tokens = torch.tensor([text])
    return Batch(tokens, torch.ones_like(tokens, dtype=torch.bool), states, states, FrozenTarget(model))


@pytest.mark.parametrize(("kind", "settings"), [("fastmtp", {"depth": 3}), ("mtp", {"modules": 2})])
def test_training_lowers_the_loss_and_learns_every_step(kind: str, settings: dict) -> None:
    model = target()
    torch.manual_seed(0)
    found = load_kind(kind)
    net = found(found.made_for(16, 29, 2, **settings))
    batch = periodic_batch(model)
    optimiser = torch.optim.AdamW(net.parameters(), lr=0.02)
    first = net.loss(batch).loss.item()
    for _ in range(60):
        lesson = net.loss(batch)
        optimiser.zero_grad()
        lesson.loss.backward()
        optimiser.step()
    last = net.loss(batch)
    assert last.loss.item() < first / 10
    assert last.reached is not None
    assert (last.reached >= 0.9 * last.counts).all()


@torch.no_grad()
def test_a_step_in_training_is_the_step_in_drafting() -> None:
    model = target()
    for settings in ({"modules": 1}, {"modules": 2}):
        torch.manual_seed(1)
        net = MtpNet(MtpNet.made_for(16, 29, 2, depth=2, zero_first=True, **settings))
        head = shaken(HeadModel(net.double(), model))
        text = TEXTS[2]
        tokens, states = torch.tensor([text]), last_states(model, text)
        frozen = FrozenTarget(model)
        frozen.table, frozen.matrix = frozen.table.double(), frozen.matrix.double()
        batch = Batch(tokens, torch.ones_like(tokens, dtype=torch.bool), states, states, frozen)
        for step, found in enumerate(net.steps(batch)):
            for place in range(4, 8):  # what is drafted behind the text that ends at place + 1 - step
                shown, path = text[: place + 2 - step], text[place + 2 - step : place + 2]
                want = Plain(head).logits(model, shown, path)
                torch.testing.assert_close(frozen.logits(found[0, place]), want)


def periodic_target() -> Transformer:
    """Return one whose next token follows from the last alone: embeddings pass through, the matrix does the rest."""
    spec = replace(SPEC, vocab_size=13, hidden_size=26)
    weights = make_weights(spec, torch.float64)
    weights.embed = torch.cat([torch.eye(13), torch.zeros(13, 13)], 1).double()
    for layer in weights.layers:
        layer.o.weight.zero_()
        layer.down.weight.zero_()
    step = torch.eye(13).double()[:, torch.arange(13).roll(5)]  # token i is followed by one place further round
    weights.head.weight = torch.cat([step, torch.zeros_like(step)], 1)
    return Transformer(spec, weights, pack=False)


def test_one_that_must_be_right_is_always_accepted() -> None:
    model = periodic_target()
    head = new_head("fastmtp", model)
    with torch.no_grad():
        part = head.net.layers[0]
        part.eh_proj.weight.zero_()
        part.eh_proj.weight[:, :26] = torch.eye(26)  # the embedding alone
        part.mtp_block.self_attn.o_proj.weight.zero_()
        part.mtp_block.mlp.down_proj.weight.zero_()
    run = make_run(FastMtp(draft_len=4, is_adaptive=False), target=model, models={"draft": head}, capacity=60)
    accepted, drafted = 0, 0
    run.join(make_rows([[1, 2, 3], [4, 5]], max_tokens=21))
    while run.rows:
        run.step()
        accepted += sum(run.last.accepted)
        drafted += sum(run.last.proposal.length)
    assert accepted == drafted > 20


def test_settings_out_of_range_are_told() -> None:
    with pytest.raises(ConfigError, match="0 modules"):
        MtpNet.made_for(16, 29, 2, modules=0)
    with pytest.raises(ConfigError, match="one module"):
        FastMtpNet.made_for(16, 29, 2, modules=2)
    with pytest.raises(ConfigError, match="no setting 'width'"):
        MtpNet.made_for(16, 29, 2, width=2)


# Heads that leap


@torch.no_grad()
@pytest.mark.parametrize(("leap", "depth"), [(2, 5), (3, 4), (1, 3)])
def test_each_place_is_told_by_the_state_that_leaps_to_it(leap: int, depth: int) -> None:
    model = target()
    head = shaken(new_head("l-mtp", model, leap=leap, depth=depth))
    assert len(head.net.heads) == -(-depth // leap)
    drafter, view = begun(head, TEXTS, LMtp)
    found = [drafter.texts(view, [depth] * 3)]
    for step in range(depth - 1):
        found.append(drafter.token(torch.zeros(3, dtype=torch.int64), torch.tensor(view.lengths) + step, [True] * 3))
    for row, text in enumerate(view.texts):
        states = last_states(model, text[:-1])[0]
        for place in range(depth):
            # A state at s tells s + 1 + m * leap: the latest known one that leaps to this place, m as small as can be.
            wanted, last = len(text) + place, len(text) - 2
            m, s = next((m, s) for s in range(last, last - leap, -1) for m in range(1, 9) if s + 1 + m * leap == wanted)
            want = model.head(head.net.heads[m - 1](states[max(s, 0)]))
            torch.testing.assert_close(found[place][row], want)


@pytest.mark.parametrize("shape", [{}, {"budget": 9}, {"branches": (2, 2, 1)}, {"accept_rule": "rejection"}])
def test_leaping_heads_leave_the_text_as_it_is(shape: dict) -> None:
    model = ToyModel()
    head = new_head("l-mtp", model)
    plain = [row.written for row in write(Autoregressive(), target=model)]
    assert [row.written for row in write(LMtp(**shape), target=model, models={"draft": head})] == plain


def test_leaping_heads_learn_a_periodic_text_and_save_forwards() -> None:
    model = periodic_target()
    torch.manual_seed(0)
    net = LeapNet(LeapNet.made_for(26, 13, 2, depth=4))
    text = [(-5 * i) % 13 for i in range(60)]  # what the target writes
    tokens, states = torch.tensor([text]), last_states(model, text).float()
    batch = Batch(tokens, torch.ones_like(tokens, dtype=torch.bool), states, states, FrozenTarget(model))
    optimiser = torch.optim.AdamW(net.parameters(), lr=0.05)
    first = net.loss(batch).loss.item()
    for _ in range(60):
        optimiser.zero_grad()
        net.loss(batch).loss.backward()
        optimiser.step()
    assert net.loss(batch).loss.item() < first / 5
    run = make_run(LMtp(), target=model, models={"draft": HeadModel(net, model)}, capacity=60)
    run.join(make_rows([text[:8]], max_tokens=40))
    steps = 0
    while run.rows:
        run.step()
        steps += 1
    assert steps <= 15


# Several steps of training against one


def texts_of(model: Transformer, rows: int, seed: int, size: int = 36) -> Batch:
    """Return texts that the model wrote at temperature 0.4, and its states of them."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, 29, (rows, 2), generator=generator)

    def score(tokens: Tensor) -> tuple[Tensor, Tensor]:
        place = torch.arange(tokens.shape[1]).expand(rows, -1)
        scores = model.score(tokens, place, None, model.new_cache(rows, 64), None, Outputs(has_last=True))
        return scores.logits[:, -1], scores.last

    while tokens.shape[1] < size:
        law = (score(tokens)[0] / 0.4).softmax(-1)
        tokens = torch.cat([tokens, torch.multinomial(law, 1, generator=generator)], 1)
    states = score(tokens)[1].clone()
    return Batch(tokens, torch.ones_like(tokens, dtype=torch.bool), states, states, FrozenTarget(model))


def test_a_head_trained_over_several_steps_is_accepted_further_than_one_trained_for_one() -> None:
    weights = make_weights(SPEC, torch.float32, seed=2)
    for layer in weights.layers:  # so that the last tokens decide most of a law
        layer.o.weight *= 0.4
        layer.down.weight *= 0.4
    weights.head.weight *= 2
    model = Transformer(SPEC, weights, pack=False)
    shown, held_out = texts_of(model, 24, seed=1), texts_of(model, 24, seed=2)

    def accepted(depth: int) -> float:
        torch.manual_seed(0)
        net = FastMtpNet(FastMtpNet.made_for(16, 29, 2, depth=depth))
        optimiser = torch.optim.AdamW(net.parameters(), lr=0.02)
        for _ in range(60):
            optimiser.zero_grad()
            net.loss(shown).loss.backward()
            optimiser.step()
        four = FastMtpNet(FastMtpNet.made_for(16, 29, 2, depth=4))
        four.load_state_dict(net.state_dict())
        with torch.no_grad():
            lesson = four.loss(held_out)
        return float(lesson.reached.sum() / lesson.counts[0])

    one, several = accepted(1), accepted(4)
    assert several > one + 0.03 > 0.5
