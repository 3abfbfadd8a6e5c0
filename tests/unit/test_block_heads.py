"""Block drafters: their one pass against slow recomputation, training blocks against drafting, and paths."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from outpace.errors import ConfigError
from outpace.heads.context import ContextDrafter
from outpace.heads.dflash import DFlashNet
from outpace.heads.model import HeadModel
from outpace.heads.net import Batch, load_kind
from outpace.methods.registry import load_method
from outpace.run.tree import TokenTree
from outpace.testing.toy import ToyModel
from outpace.testing.world import PeriodicModel, make_rows, make_run, write
from outpace.types import Outputs, Scores, View

KINDS = ("dflash", "jetspec", "dspark", "domino", "dflash2")
SHAPES: list[dict[str, Any]] = [
    {},
    {"blocks": 2, "heads": 4, "kv_heads": 2, "head_dim": 4, "window": 3, "anchor_drafts": False, "adds_state": False},
    {"is_causal": True, "mask_id": 5, "qk_norm": False, "bias": True, "window": 4},
]


class Teacher:
    """A toy target as training sees it."""

    def __init__(self, target: ToyModel, ids: Tensor | None = None) -> None:
        self.target, self.ids = target, ids

    def embed(self, tokens: Tensor) -> Tensor:
        return self.target.embed(tokens.flatten().unsqueeze(0))[0].view(*tokens.shape, -1)

    def logits(self, hidden: Tensor) -> Tensor:
        found = self.target.head(hidden.reshape(-1, 8)).view(*hidden.shape[:-1], 13)
        return found if self.ids is None else found[..., self.ids]


class Plain(Teacher):
    """One whose output is a matrix, as that of real targets; a toy's is squashed, and says nothing with certainty."""

    def logits(self, hidden: Tensor) -> Tensor:
        return 3 * hidden @ self.target.weights[3]


def random_head(kind: str, target: ToyModel, ids: Tensor | None = None, **settings: Any) -> HeadModel:
    """Return a drafter whose every weight is random, those that begin at 0 too."""
    more = {} if ids is None else {"draft_vocab": len(ids)}
    net = load_kind(kind)(load_kind(kind).made_for(8, 13, 3, **settings, **more))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in net.parameters():
            weight.copy_(0.5 * torch.randn(weight.shape, generator=generator) + (weight.dim() == 1))
    return HeadModel(net, target, ids)


def states_of(target: ToyModel, text: list[int], outputs: Outputs) -> Tensor:
    """Return the states [n, F] of a text, from one plain forward."""
    cache = target.new_cache(1, len(text))
    scores = target.score(torch.tensor([text]), torch.arange(len(text)).unsqueeze(0), None, cache, outputs=outputs)
    parts = [scores.taps[layer] for layer in outputs.layers] + ([scores.last] if outputs.has_last else [])
    return torch.cat([part[0] for part in parts if part is not None], -1)


def turned(x: Tensor, place: int, theta: float) -> Tensor:
    """Return a head's vector turned by its place, pair by pair."""
    half = len(x) // 2
    out = x.clone()
    for i in range(half):
        angle = torch.tensor(place * theta ** (-2 * i / len(x)))
        out[i] = x[i] * angle.cos() - x[half + i] * angle.sin()
        out[half + i] = x[half + i] * angle.cos() + x[i] * angle.sin()
    return out


def slow_hidden(model: HeadModel, text: list[int]) -> Tensor:
    """Return the hidden states [D, H] of the block behind a text: no cache, no batch, place by place, head by head."""
    net: DFlashNet = model.net  # type: ignore[assignment]
    own, target, last = net.config.settings, model.target, len(text) - 1
    norm = lambda part, x: x / (x.square().mean(-1, keepdim=True) + own["eps"]).sqrt() * part.weight  # noqa: E731
    states = states_of(target, text, net.config.outputs)[:last]  # type: ignore[arg-type]
    feature = norm(net.hidden_norm, states @ net.fc.weight.T)
    embed = lambda token: target.embed(torch.tensor([[token]]))[0, 0]  # noqa: E731
    count = net.config.depth + (not own["anchor_drafts"])
    slots = [embed(text[-1])]
    slots += [net.mask_embedding[i] if own["mask_id"] < 0 else embed(own["mask_id"]) for i in range(count - 1)]
    x = [slot + feature[-1] if own["adds_state"] else slot for slot in slots]
    for layer in net.layers:
        part: Any = layer.self_attn  # type: ignore[union-attr]

        def heads(matrix: Any, y: Tensor, place: int, scale: Any, part: Any = part) -> list[Tensor]:
            found = (y @ matrix.weight.T + (0 if matrix.bias is None else matrix.bias)).split(part.head_dim)
            if matrix is part.v_proj:
                return list(found)
            return [turned(norm(scale, one) if own["qk_norm"] else one, place, own["theta"]) for one in found]

        scale_q, scale_k = (part.q_norm, part.k_norm) if own["qk_norm"] else (None, None)
        inner = [norm(layer.input_layernorm, one) for one in x]  # type: ignore[union-attr]
        read = [(place, one) for place, one in enumerate(feature)] + [(last + i, one) for i, one in enumerate(inner)]
        keys = [heads(part.k_proj, one, place, scale_k) for place, one in read]
        values = [heads(part.v_proj, one, place, None) for place, one in read]
        for i in range(count):
            query = heads(part.q_proj, inner[i], last + i, scale_q)
            is_block = [number >= len(feature) for number in range(len(read))]
            seen = [
                number
                for number, (place, _) in enumerate(read)
                if (is_block[number] and (not own["is_causal"] or place <= last + i))
                or (not is_block[number] and (not own["window"] or place > last + i - own["window"]))
            ]
            found = []
            for head in range(part.heads):
                twin = head // (part.heads // part.kv_heads)
                score = torch.stack([query[head] @ keys[number][twin] for number in seen]) / part.head_dim**0.5
                share = score.softmax(0)
                found.append(sum(share[j] * values[number][twin] for j, number in enumerate(seen)))
            mixed = torch.cat(found) @ part.o_proj.weight.T  # type: ignore[arg-type]
            x[i] = x[i] + mixed + (0 if part.o_proj.bias is None else part.o_proj.bias)
        for i in range(count):
            y, mlp = norm(layer.post_attention_layernorm, x[i]), layer.mlp  # type: ignore[union-attr]
            gate = y @ mlp.gate_proj.weight.T  # type: ignore[union-attr]
            x[i] = x[i] + (gate * gate.sigmoid() * (y @ mlp.up_proj.weight.T)) @ mlp.down_proj.weight.T  # type: ignore[union-attr]
    return torch.stack([norm(net.norm, one) for one in x[count - net.config.depth :]])


@pytest.mark.parametrize("settings", SHAPES, ids=str)
def test_one_pass_beside_ragged_neighbours_is_the_slow_computation(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    target = ToyModel()
    model = random_head("dflash", target, depth=3, **settings)
    seen = 0

    class Checked(ContextDrafter):
        def texts(self, view: View, reach: Any) -> Tensor:
            nonlocal seen
            logits = super().texts(view, reach)
            assert self.made is not None
            for row, ahead in enumerate(reach):
                if ahead:
                    expected = slow_hidden(model, list(view.texts[row]))
                    torch.testing.assert_close(self.made[row, :, :8], expected, rtol=1e-5, atol=1e-6)
                    torch.testing.assert_close(logits[row], target.head(expected[:1])[0], rtol=1e-5, atol=1e-6)
                    seen += 1
            return logits

    monkeypatch.setattr("outpace.heads.dflash.ContextDrafter", Checked)
    run = make_run(load_method("dflash")(), target=target, models={"draft": model})
    run.join(make_rows([(1, 2, 3), (4, 5, 6, 7, 8, 9, 1)], 5))
    run.step()
    run.join(make_rows([(7,), (3, 1, 4, 1, 5)], 5))
    while run.rows:
        run.step()
    assert seen > 10


@pytest.mark.parametrize("settings", SHAPES, ids=str)
def test_a_training_block_is_what_is_drafted_there(settings: dict[str, Any]) -> None:
    target, text = ToyModel(), [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]
    model = random_head("dflash", target, depth=3, **settings)
    net: DFlashNet = model.net  # type: ignore[assignment]
    feature = net.features(states_of(target, text, net.config.outputs).unsqueeze(0))
    anchor = torch.tensor([[7, 1, 4]])
    tokens = torch.tensor([text]).gather(1, anchor)
    entering = net.block(Teacher(target), tokens, feature[0, anchor - 1])  # type: ignore[arg-type]
    found = net.run(entering, net._trainer(feature, anchor))
    for number, place in enumerate(anchor[0].tolist()):
        torch.testing.assert_close(found[0, number], slow_hidden(model, text[: place + 1]), rtol=1e-5, atol=1e-6)


def teacher_batch(target: ToyModel, texts: list[list[int]], outputs: Outputs, ids: Tensor | None = None) -> Batch:
    """Return texts of one length as a step of training sees them; the first two tokens are the user's."""
    states = torch.stack([states_of(target, text, outputs) for text in texts])
    last = torch.stack([states_of(target, text, Outputs((), True)) for text in texts])
    taught = torch.ones(len(texts), len(texts[0]), dtype=torch.bool)
    taught[:, :2] = False
    return Batch(torch.tensor(texts), taught, states, last, Teacher(target, ids))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
def test_some_steps_on_a_periodic_text_teach_it(kind: str) -> None:
    target, cycle = ToyModel(), [1, 5, 9, 2, 7, 11, 3]
    text = (cycle * 4)[:24]
    torch.manual_seed(0)
    net: DFlashNet = load_kind(kind)(load_kind(kind).made_for(8, 13, 3, depth=3, soft=0.0))  # type: ignore[assignment]
    net.double()
    batch = teacher_batch(target, [text, text[2:] + text[1:3]], net.config.outputs)
    batch.frozen = Plain(target)  # type: ignore[assignment]
    optimiser, losses = torch.optim.Adam(net.parameters(), 0.02), []
    for step in range(40):
        batch.step = step
        lesson = net.loss(batch)
        optimiser.zero_grad()
        lesson.loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        losses.append(lesson.loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert lesson.reached is not None
    assert bool((lesson.reached <= lesson.hits).all()) and float(lesson.reached.sum() / lesson.counts[0]) > 2


def slow_law(model: HeadModel, hidden: Tensor, depth: int, path: list[int]) -> Tensor:
    """Return the law [13] after an anchor and `depth` drafts, of a place's hidden state, by each kind's formula."""
    net: Any = model.net
    embed = lambda token: model.target.embed(torch.tensor([[token]]))[0, 0]  # noqa: E731
    logits = model.target.head(hidden.unsqueeze(0))[0]
    before = path[depth]
    if net.kind == "dspark":
        return logits + net.markov_head.markov_w2.weight @ (net.markov_head.markov_w1.weight @ embed(before))
    if net.kind == "domino":
        gru, state = net.prefix_gru, torch.zeros(net.config.settings["gru_size"], dtype=torch.float64)
        for token in path[: depth + 1]:
            given = (gru.weight_ih_l0 @ embed(token)).chunk(3)
            held = (gru.weight_hh_l0 @ state).chunk(3)
            reset, update = (given[0] + held[0]).sigmoid(), (given[1] + held[1]).sigmoid()
            state = (1 - update) * (given[2] + reset * held[2]).tanh() + update * state
        if depth < net.config.settings["pure"]:
            return logits
        inner = net.embed_proj[0].weight @ torch.cat([hidden, state])
        return logits + net.embed_proj[2].weight @ (inner * inner.sigmoid())
    if net.kind == "dflash2":
        selector, found = net.candidate_selector, torch.full_like(logits, float("-inf"))
        asked = (selector.predecessor_codebook.weight @ embed(before)) * (selector.hidden_projection.weight @ hidden)
        for token in logits.sort(descending=True).indices[: net.config.settings["top"]].tolist():
            found[token] = logits[token] + asked @ selector.successor_codebook[token]
        return found
    return logits


MORE: dict[str, dict[str, Any]] = {"domino": {"pure": 1, "gru_size": 5, "rank": 6}, "dflash2": {"top": 5, "rank": 4}}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", [{}, {"budget": 12}], ids=str)
def test_every_node_of_a_tree_has_the_law_of_its_own_path(
    kind: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    target = ToyModel()
    model = random_head(kind, target, depth=3, **MORE.get(kind, {}))
    method = load_method(kind)(**({"budget": 0} | options))
    found: list[tuple[list[int], list[int], Tensor]] = []
    asked, grown = ContextDrafter.token, ContextDrafter.nodes

    def token(self: ContextDrafter, drafted: Tensor, place: Tensor, running: Any) -> Tensor:
        logits = asked(self, drafted, place, running)
        assert self.made is not None and self.chain is not None
        found.extend(
            (self.chain[row].tolist(), self.made[row], logits[row])  # type: ignore[misc]
            for row, is_on in enumerate(running)
            if is_on
        )
        return logits

    def nodes(self: ContextDrafter, tree: TokenTree, node: Tensor, is_real: Tensor) -> Tensor:
        logits = grown(self, tree, node, is_real)
        assert self.made is not None and self.chain is not None
        for row, column in is_real.nonzero().tolist():
            at, path = int(node[row, column]), []
            while at >= 0:
                path.insert(0, int(tree.tokens[row, at]))
                at = int(tree.parent[row, at])
            found.append(([int(self.chain[row, 0]), *path], self.made[row], logits[row, column]))  # type: ignore[arg-type]
        return logits

    monkeypatch.setattr(ContextDrafter, "token", token)
    monkeypatch.setattr(ContextDrafter, "nodes", nodes)
    run = make_run(method, target=target, models={"draft": model})
    rows = make_rows([(1, 2, 3), (4, 5, 6, 7, 8, 9, 1)], 8)
    run.join(rows)
    while run.rows:
        run.step()
    assert len(found) > 4
    for path, made, logits in found:
        depth = len(path) - 1
        torch.testing.assert_close(logits, slow_law(model, made[depth, :8], depth, path))


@pytest.mark.parametrize("ids", [None, [1, 2, 3, 5, 7, 9, 11]], ids=["all", "some"])
def test_the_loss_is_its_formula(ids: list[int] | None) -> None:
    target, chosen = ToyModel(), None if ids is None else torch.tensor(ids)
    model = random_head("dspark", target, chosen, depth=3, anchors=99, soft=0.3, decay=2.0, has_confidence=False)
    net: DFlashNet = model.net  # type: ignore[assignment]
    texts = [[1, 2, 3, 4, 5, 6, 7, 8], [9, 7, 5, 3, 1, 2, 11, 0]]
    batch = teacher_batch(target, texts, net.config.outputs, chosen)
    batch.is_taught[1, 6:] = False  # padding
    lesson = net.loss(batch)
    total = weights = 0.0
    hits, counts, reached = ([0] * 3 for _ in range(3))
    for row, text in enumerate(texts):
        for anchor in range(1, len(text) - 1):
            hidden, alive = slow_hidden(model, text[: anchor + 1]), True
            for depth, place in enumerate(range(anchor + 1, anchor + 4)):
                if place >= len(text) or not bool(batch.is_taught[row, place]):
                    break
                weight = 2.718281828459045 ** (-depth / 2)
                logits = model.logits(hidden[depth].unsqueeze(0))[0]
                short = model.net.markov_head.markov_w1.weight @ target.embed(torch.tensor([[text[place - 1]]]))[0, 0]  # type: ignore[operator, union-attr]
                log_q = (logits + model.net.markov_head.markov_w2.weight @ short).log_softmax(-1)  # type: ignore[operator, union-attr]
                law = batch.frozen.logits(batch.last[row, place - 1]).softmax(-1)
                names = list(range(13)) if ids is None else ids
                total -= weight * 0.3 * float((law * log_q).sum())
                if text[place] in names:
                    total -= weight * 0.7 * float(log_q[names.index(text[place])])
                right = names[int(log_q.argmax())] == text[place]
                alive = alive and right
                weights += weight
                hits[depth] += right
                counts[depth] += 1
                reached[depth] += alive
    assert float(lesson.loss) == pytest.approx(total / weights, rel=1e-4)
    assert lesson.reached is not None
    assert (lesson.hits.tolist(), lesson.counts.tolist(), lesson.reached.tolist()) == (hits, counts, reached)


class Stepping(PeriodicModel):
    """After token t always comes t + 5, modulo the vocabulary's 13."""

    def score(  # type: ignore[override]
        self, tokens: Tensor, position: Tensor, visible: Any, cache: Any, ask: Any = None, *more: Any, **named: Any
    ) -> Scores:
        scores = self.target.score(tokens, position, visible, cache, ask, *more, **named)
        asked = tokens if ask is None else tokens.gather(1, ask)
        return replace(scores, logits=60.0 * torch.nn.functional.one_hot((asked + 5) % 13, 13).double())


def test_an_unsure_drafter_drafts_less() -> None:
    target = Stepping()
    model = random_head("dspark", target, depth=3)
    model.net.confidence_head.proj.weight.zero_()  # type: ignore[operator, union-attr]
    proposed = []
    for bias in (9.0, 0.0, -9.0):
        model.net.confidence_head.proj.bias.fill_(bias)  # type: ignore[operator, union-attr]
        rows = make_rows([(1, 2, 3)], 8)
        write(load_method("dspark")(is_adaptive=False, min_kept=0.4), rows=rows, target=target, models={"draft": model})
        assert rows[0].written == [(3 + 5 * (i + 1)) % 13 for i in range(8)]
        proposed.append(rows[0].usage.num_proposed)
    assert proposed[0] > proposed[1] > proposed[2] == 0


def test_bad_settings_are_named() -> None:
    made = load_kind("dspark").made_for
    bad: list[dict[str, Any]] = [
        {"heads": 3, "kv_heads": 2}, {"rank": 0}, {"taps": [9]}, {"soft": 2.0}, {"window": -1}, {"nothing": 1},
        {"depth": 0},
    ]  # fmt: skip
    for settings in bad:
        with pytest.raises(ConfigError):
            made(8, 13, 3, **settings)
