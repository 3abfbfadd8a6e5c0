"""Feature drafters: every law against a recomputation without cache or tree, known answers, and training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from outpace.draft.features import joined_states
from outpace.errors import ConfigError
from outpace.heads.decoder import Masked
from outpace.heads.eagle import EagleNet
from outpace.heads.feature import FeatureDrafter, FeatureNet
from outpace.heads.model import HeadModel
from outpace.heads.net import Batch, HeadConfig, load_kind
from outpace.methods.autoregressive import Autoregressive
from outpace.methods.base import Method
from outpace.methods.registry import load_method
from outpace.sampling import Sampling
from outpace.testing.gtest import g_test, small_model, text_counts, text_law
from outpace.testing.toy import ToyModel
from outpace.testing.world import PROMPTS, SETTINGS, make_rows, make_run, target_for, write
from outpace.types import Adapter, Outputs, View

WIDE = {"heads": 4, "kv_heads": 2, "head_dim": 4, "own_layers": 2, "attention_bias": True, "has_head_norm": True}
EAGLE3 = {"fc_norm": True, "norm_output": True, "is_interleaved": True, "attention_bias": True, "logit_scale": 0.5}
FORMS: list[tuple[str, dict[str, Any]]] = [
    ("eagle", {}),
    ("eagle", {**WIDE, "fc_bias": False}),
    ("eagle3", {"norm_before_residual": True, "own_output": False}),
    ("eagle3", {"norm_before_fc": True, "own_layers": 2, "layers": [0, 3]}),
    ("eagle3", {**EAGLE3, "hidden": 12, "own_embedding": True, "partial_rotary_factor": 0.5}),
    ("eagle3", {"layers": []}),
    ("p-eagle", {"own_layers": 2}),
    ("fspad", {"sampling": 24}),
    ("jakiro", {"parallel": 2, "experts": 3}),
    ("jakiro", {"parallel": 0}),
    ("falcon", {}),
    ("falcon", {"block": 3}),
    ("tandem", {"own_layers": 2}),
    ("tandem", {"has_states": False}),
]
NAMES = ["-".join([kind, *settings])[:40] for kind, settings in FORMS]
SOME = torch.arange(0, 13, 2)


class ToyFrozen:
    """A toy target while a drafter is trained beside it."""

    def __init__(self, target: Adapter, ids: Tensor | None = None) -> None:
        self.target, self.ids = target, ids

    def embed(self, tokens: Tensor) -> Tensor:
        return self.target.embed(tokens)

    def logits(self, hidden: Tensor) -> Tensor:
        logits = self.target.head(hidden.double())
        return logits if self.ids is None else logits[..., self.ids]

    def forward(self, *given: Any, **more: Any) -> tuple[Tensor, list[Tensor]]:
        raise NotImplementedError


def made(kind: str, target: Adapter, settings: dict[str, Any], ids: Tensor | None = None) -> FeatureNet:
    """Return a network in float64, whose weights all count."""
    found, width = load_kind(kind), target.embed(torch.zeros(1, 1, dtype=torch.int64)).shape[-1]
    config = found.made_for(width, target.capabilities.vocab_size, target.capabilities.num_layers, **settings)
    torch.manual_seed(0)
    count = 0 if ids is None else len(ids)
    net = found(HeadConfig(**{**config.to_dict(), "layers": config.layers, "draft_vocab": count}))
    assert isinstance(net, FeatureNet)
    return net.double()


def shaken(net: FeatureNet) -> FeatureNet:
    for weight in net.parameters():
        nn.init.normal_(weight, std=0.4)
    return net


def states_of(target: Adapter, net: FeatureNet, texts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Return the states [B, T, F] that the network reads, and the last hidden ones, of whole texts of one length."""
    tokens, outputs = torch.tensor(texts), net.config.outputs
    cache, position = target.new_cache(len(texts), tokens.shape[1]), torch.arange(tokens.shape[1]).expand_as(tokens)
    scores = target.score(tokens, position, None, cache, outputs=outputs | Outputs(has_last=True))
    assert scores.last is not None
    return joined_states(scores, outputs), scores.last


def batch_of(target: Adapter, net: FeatureNet, texts: Sequence[Sequence[int]], ids: Tensor | None = None) -> Batch:
    tokens = torch.tensor(texts)
    states, last = states_of(target, net, texts)
    return Batch(tokens, torch.ones_like(tokens, dtype=torch.bool), states, last, ToyFrozen(target, ids))


def method_for(kind: str, **settings: Any) -> Method:
    method: Method = load_method(kind)(**settings)
    return method


def heard(monkeypatch: pytest.MonkeyPatch) -> list[tuple[tuple[int, ...], tuple[int, ...], Tensor]]:
    """Note every law that a drafter gives, with its text and its path."""
    found: list[tuple[tuple[int, ...], tuple[int, ...], Tensor]] = []
    now: list[tuple[list[list[int]], Sequence[int]]] = []
    texts, answers = FeatureDrafter.texts, FeatureDrafter._answers

    def noted_texts(self: FeatureDrafter, view: View, reach: Sequence[int]) -> Tensor:
        now[:] = [([list(text) for text in view.texts], reach)]
        return texts(self, view, reach)

    def noted(self: FeatureDrafter, asked: list[list[int]]) -> Tensor:
        given = answers(self, asked)
        for row, (text, ahead) in enumerate(zip(*now[0], strict=True)):
            for place, node in enumerate(asked[row] if ahead else ()):
                known, path = self.nodes_of[row], []
                while node > 0:
                    path.append(known.token[node])
                    node = known.parent[node]
                found.append((tuple(text), tuple(path[::-1]), given[row, place]))
        return given

    monkeypatch.setattr(FeatureDrafter, "texts", noted_texts)
    monkeypatch.setattr(FeatureDrafter, "_answers", noted)
    return found


def plainly(model: HeadModel, states: Tensor, text: Sequence[int], path: Sequence[int]) -> Tensor:
    """Return the law after a path: every pass is made anew over all entries there are, without a cache or a tree.

    Args:
        model: the drafter.
        states: [T - 1, F] of the text's tokens but the last.
        text, path: tokens.
    """
    net: FeatureNet = model.net  # type: ignore[assignment]
    stride, tail, size = net.stride, net.tail, len(text) - 1
    embeds, features = net.embed(model, torch.tensor(text[1:])), net.fuse(states)
    if tail:
        more, own = net.tail_entries(model, torch.tensor(text[-1:]))
        embeds, features = torch.cat([embeds, more[0]]), torch.cat([features, own[0]])
    first = size - stride  # where the last block of the text begins
    depth, anchor = 0, net.anchor(len(path))
    while True:
        total = len(embeds)
        place = torch.arange(total)
        block = torch.div(place - first, stride, rounding_mode="floor")
        reach = torch.where(place < first, place, first + (block + 1) * stride - 1) if not tail else place
        is_text = (place < size).unsqueeze(0)
        sight = Masked(place.unsqueeze(0), place <= reach.unsqueeze(1), is_text)
        out = net.run(embeds.unsqueeze(0), features.unsqueeze(0), sight)[0]
        if depth == anchor:
            ahead = torch.tensor(len(path) - anchor)
            return net.laws(model, out[-stride - tail :] if not depth else out[-stride:], ahead)
        tokens = torch.tensor(path[depth : depth + stride])
        embeds = torch.cat([embeds, net.embed(model, tokens)])
        features = torch.cat([features, net.feedback(out[-stride:])])
        depth += stride


@pytest.mark.parametrize("ids", [None, SOME], ids=["all tokens", "some tokens"])
@pytest.mark.parametrize(("kind", "settings"), FORMS, ids=NAMES)
def test_every_law_is_that_of_a_plain_recomputation(
    kind: str, settings: dict[str, Any], ids: Tensor | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ragged rows, trees, prompts in pieces, entries of steps before: nothing of it shows in a law."""
    target, told = target_for("causal"), heard(monkeypatch)
    net = shaken(made(kind, target, settings, ids))
    model = HeadModel(net, target, ids)
    method = method_for(kind, budget=7, draft_len=4, min_gain=0.0)
    write(method, SETTINGS["temperature 0.7"], target=target, models={"draft": model})
    deepest = 3
    assert {len(path) for _, path, _ in told} == set(range(deepest + 1)) and len({len(text) for text, _, _ in told}) > 8
    for text, path, law in told[:: max(1, len(told) // 20)]:
        with torch.no_grad():
            states, _ = states_of(target, net, [text[:-1]])
            torch.testing.assert_close(law, plainly(model, states[0], text, path), rtol=1e-9, atol=1e-9)


def test_a_layer_is_llamas() -> None:
    """EAGLE's formulas written out for one entry after another, with rotations as complex numbers."""
    target = target_for("causal")
    net = shaken(made("eagle", target, {"heads": 2, "head_dim": 4}))
    tokens, features = torch.tensor([3, 1, 4, 1, 5]), torch.randn(5, 8, dtype=torch.float64)
    embeds, weight = target.embed(tokens), dict(net.named_parameters())
    place = torch.arange(5)
    with torch.no_grad():
        got = net.run(embeds[None], features[None], Masked(place[None], place <= place.unsqueeze(1)))[0]
    entries = [
        weight["fc.weight"] @ torch.cat([e, f]) + weight["fc.bias"] for e, f in zip(embeds, features, strict=True)
    ]

    def turned(x: Tensor, at: int) -> Tensor:
        pairs = torch.complex(x[:2], x[2:])
        speed = torch.tensor([1.0, 10000.0**-0.5], dtype=torch.float64)
        out = pairs * torch.polar(torch.ones(2, dtype=torch.float64), at * speed)
        return torch.cat([out.real, out.imag])

    for at, x in enumerate(entries):
        mixed = []
        for head in range(2):
            rows = slice(4 * head, 4 * head + 4)
            query = turned(weight["layers.0.self_attn.q_proj.weight"][rows] @ x, at)
            keys = [turned(weight["layers.0.self_attn.k_proj.weight"][rows] @ y, i) for i, y in enumerate(entries)]
            share = torch.stack([query @ key / 2 for key in keys[: at + 1]]).softmax(0)
            values = [weight["layers.0.self_attn.v_proj.weight"][rows] @ y for y in entries[: at + 1]]
            mixed.append(sum(s * v for s, v in zip(share, values, strict=True)))
        x = x + weight["layers.0.self_attn.o_proj.weight"] @ torch.cat(mixed)  # type: ignore[arg-type]
        normed = x / (x.square().mean() + 1e-5).sqrt() * weight["layers.0.post_attention_layernorm.weight"]
        gate, up, down = (weight[f"layers.0.mlp.{name}_proj.weight"] for name in ("gate", "up", "down"))
        torch.testing.assert_close(got[at], x + down @ (F.silu(gate @ normed) * (up @ normed)))


def test_a_gap_in_what_is_known_begins_the_cache_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """States that nobody saw part the text: the drafter then reads what lies behind them, and nothing before."""
    target, told = target_for("causal"), heard(monkeypatch)
    net = shaken(made("eagle", target, {}))
    model, rows = HeadModel(net, target), make_rows(max_tokens=30)
    run = make_run(method_for("eagle"), target=target, models={"draft": model})
    run.join(rows)
    for _ in range(3):
        run.step()
    drafter: FeatureDrafter = run.batch.state.drafter
    lost = len(rows[0].tokens)
    assert min(drafter.features.whole) > 0
    known = drafter.features  # of the first row, what lies before its last token is not known any more
    known.held[0], known.starts[0], known.whole[0] = known.held[0][:0], lost - 1, 0
    told.clear()
    while run.rows:
        run.step()
    assert [row.tokens for row in rows] == [
        row.tokens for row in write(Autoregressive(), rows=make_rows(max_tokens=30))
    ]
    later = [(text, path, law) for text, path, law in told if text[:lost] == tuple(rows[0].tokens[:lost])]
    assert len(later) > 4
    for text, path, law in later[:: max(1, len(later) // 5)]:
        with torch.no_grad():
            states, _ = states_of(target, net, [text[:-1]])
            torch.testing.assert_close(law, plainly(model, states[0, lost - 1 :], text[lost - 1 :], path))


class Cycle(ToyModel):
    """A model that writes, after a token, the one `step` further on."""

    def __init__(self, step: int, sharpness: float = 4.0) -> None:
        super().__init__(hidden=13, sharpness=sharpness)
        self.weights[0], self.weights[3] = torch.eye(13).double(), torch.eye(13).double().roll(step, 1)
        self.weights[1].zero_()


def knowing(target: Adapter) -> EagleNet:
    """Return EAGLE's network set so that an entry's output is its token's embedding: that model's last state."""
    net = made("eagle", target, {})
    assert isinstance(net, EagleNet)
    with torch.no_grad():
        for name, weight in net.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")) or name.startswith("fc"):
                weight.zero_()
        net.fc.weight[:, :13] = torch.eye(13)
    return net


@pytest.mark.parametrize(
    "settings", [{"budget": 0}, {}, {"branches": (2, 1, 1)}, {"accept_rule": "rejection"}], ids=str
)
@pytest.mark.parametrize("name", ["greedy", "temperature 0.7"])
def test_a_drafter_that_knows_the_next_state_is_always_right(name: str, settings: dict[str, Any]) -> None:
    target, rows = Cycle(5), make_rows(max_tokens=21)
    models = {"draft": HeadModel(knowing(target), target)}
    write(method_for("eagle", is_adaptive=False, **settings), SETTINGS[name], rows, target=target, models=models)
    plain = make_rows(max_tokens=21)
    write(Autoregressive(), SETTINGS[name], plain, target=target)
    depth = 3 if "branches" in settings else 6
    for row, alone in zip(rows, plain, strict=True):
        if "accept_rule" not in settings:
            assert row.written == alone.written
        # A prompt of one token has no states before its last one: its first step is plain.
        most = -(-21 // (depth + 1)) + 1 if name == "greedy" or settings.get("budget") == 0 else 21
        assert row.usage.num_steps <= most, row.usage
        if settings.get("budget") == 0 or "accept_rule" in settings:
            assert row.usage.num_accepted == row.usage.num_proposed > 12, row.usage


@pytest.mark.parametrize(("kind", "passes"), [("eagle", 4), ("falcon", 2), ("p-eagle", 1), ("jakiro", 3)])
def test_passes_for_four_tokens(kind: str, passes: int) -> None:
    """Falcon drafts as deep with fewer passes than levels; P-EAGLE with one; Jakiro's last level costs none."""
    target = target_for("causal")
    model = HeadModel(shaken(made(kind, target, {})), target)
    run = make_run(method_for(kind, budget=0, draft_len=4, is_adaptive=False), target=target, models={"draft": model})
    run.join(make_rows([PROMPTS[0]], max_tokens=30))
    counted = []
    for _ in range(4):
        before = run.counters["draft"].nfe
        run.step()
        assert run.last is not None and run.last.proposal is not None
        if run.last.proposal.length == [4]:
            counted.append(run.counters["draft"].nfe - before)
    assert counted and set(counted) == {passes}


@pytest.mark.parametrize(("kind", "settings"), FORMS, ids=NAMES)
def test_training_on_what_the_target_wrote_lets_its_drafts_be_accepted(kind: str, settings: dict[str, Any]) -> None:
    target, prompts = Cycle(5, 12.0), [[3, 1, 4], [2, 7, 1]]
    written = [row.tokens for row in write(Autoregressive(), rows=make_rows(prompts, max_tokens=30), target=target)]
    own = {"noise": 0.0, "token_weight": 1.0} if "noise" in load_kind(kind).extra else {}  # type: ignore[attr-defined]
    net = made(kind, target, {**settings, **own})
    net.begin(ToyFrozen(target))
    batch = batch_of(target, net, written)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
    losses = []
    for step in range(40):
        batch.step, batch.progress = step, step / 40
        lesson = net.loss(batch)
        optimizer.zero_grad()
        lesson.loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(lesson.loss.item())
    assert losses[-1] < 0.5 * losses[0], losses
    net.eval()
    with torch.no_grad():
        lesson = net.loss(batch)
    assert lesson.reached is not None and len(lesson.hits) >= 4
    rows = make_rows(prompts, max_tokens=30)
    write(method_for(kind, budget=0, draft_len=4), rows=rows, target=target, models={"draft": HeadModel(net, target)})
    assert [row.tokens for row in rows] == written
    for row in rows:
        assert row.usage.num_accepted > 0.75 * row.usage.num_proposed > 10, row.usage


@pytest.mark.parametrize(("kind", "settings"), FORMS, ids=NAMES)
def test_a_lesson_sees_what_drafting_sees(kind: str, settings: dict[str, Any]) -> None:
    """What a lesson counts as reached is what chains come to that are drafted from every place of the text."""
    target = target_for("causal")
    net = shaken(made(kind, target, settings)).eval()
    model, text = HeadModel(net, target), [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9]
    with torch.no_grad():
        batch = batch_of(target, net, [text])
        # The text follows the drafter from its eighth token on, so that something is reached.
        for place in range(7, len(text)):
            known, _ = states_of(target, net, [text[: place - 1]])
            text[place] = int(plainly(model, known[0], text[:place], ()).argmax())
        batch = batch_of(target, net, [text])
        lesson = net.loss(batch)
        reached = [0] * 4
        # Blocks follow each other where a lesson has blocks; elsewhere every place begins a chain.
        block = net.config.depth if kind == "tandem" and net.tail else net.stride
        for size in range(1 + net.stride, len(text), block):
            if block > net.stride and size + block > len(text):
                break  # a lesson counts whole blocks
            for depth in range(4):
                if size + depth >= len(text):
                    break
                law = plainly(model, batch.states[0, : size - 1], text[:size], text[size : size + depth])
                if int(law.argmax()) != text[size + depth]:
                    break
                reached[depth] += 1
    assert lesson.reached is not None
    assert lesson.reached[:4].tolist() == reached and sum(reached) > 1


@pytest.mark.parametrize("kind", ["eagle", "falcon"])
def test_texts_under_the_rejection_rule_follow_the_law(kind: str) -> None:
    target, settings = small_model(), Sampling(temperature=0.7)
    model = HeadModel(shaken(made(kind, target, {})), target)
    method = method_for(kind, accept_rule="rejection", draft_len=2)
    counts = text_counts(method, target, 3, settings, 600, {"draft": model})
    assert g_test(counts, text_law(target, 3, settings)) > 1e-4


@pytest.mark.parametrize(
    ("kind", "settings", "says"),
    [
        ("eagle", {"depht": 3}, "no setting 'depht'"),
        ("eagle", {"heads": 3, "kv_heads": 2}, "3 heads and 2 key heads"),
        ("eagle", {"head_dim": 3}, "3 numbers"),
        ("eagle3", {"fc_norm": True, "norm_before_fc": True}, "Both"),
        ("eagle3", {"hidden": 12}, "12 wide"),
        ("p-eagle", {"layers": []}, "tapped states"),
        ("jakiro", {"parallel": 4}, "4 parallel levels of 4"),
        ("falcon", {"own_layers": 2}, "2 layers"),
        ("tandem", {"own_layers": 0}, "a layer"),
    ],
)
def test_bad_settings_say_so(kind: str, settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        made(kind, target_for("causal"), settings)
