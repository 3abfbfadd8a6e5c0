"""Continuous diffusion against integrals on a grid, closed forms and plain loops, in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from outpace.errors import ConfigError
from outpace.methods.whole.continuous import ContinuousDiffusion, central
from outpace.models.continuous.losses import bound, poisson_times
from outpace.models.continuous.network import Diffusion, DiffusionConfig
from outpace.models.continuous.process import ancestral, ddim, drawn, noised, scales
from outpace.models.continuous.schedule import Schedule, staggered
from outpace.models.continuous.solver import Plan, solve
from outpace.models.nar.model import NarModel
from outpace.models.nar.network import Pass
from outpace.run.row import Row
from outpace.sampling import row_key
from outpace.testing.world import drive, make_run
from outpace.train.continuous.likelihood import check_bound

SIZES: dict[str, Any] = {"width": 16, "heads": 2, "ffn": 16, "encoder_layers": 1, "decoder_layers": 1, "dropout": 0.0}
SOURCES = [[5, 6, 7, 8, 9, 10, 11, 0], [9, 0], [4, 4, 12, 13, 0]]


def network(vocab: int = 17, **settings: Any) -> Diffusion:
    torch.manual_seed(1)
    sizes = SIZES | {"length": 6, "dims": 8, "max_source": 16, "max_positions": 16, "end_token": 0} | settings
    return Diffusion(DiffusionConfig(vocab_size=vocab, **sizes)).double().eval()


def laid(
    net: Diffusion, sources: list[list[int]], targets: Tensor | None = None, lengths: Tensor | None = None
) -> Pass:
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(source) for source in sources], batch_first=True)
    is_real = torch.arange(ids.shape[1]) < torch.tensor([[len(source)] for source in sources])
    return net.begin(ids, is_real, targets, lengths)


def likelihood_model(end: int) -> Diffusion:
    """A model of one token out of two, in one dimension, whose network sees the noisy token only through its law."""
    net = network(vocab=2, length=1, dims=1, end_token=end, objective="bound", schedule="learned")
    torch.nn.init.zeros_(net.said.weight)
    net.said.bias.data = torch.tensor([0.3, 0.7], dtype=torch.float64).log()
    net.token_embed.weight.data = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)
    net.schedule.ends.data = torch.tensor([-2.0, 5.0], dtype=torch.float64)
    return net


@torch.no_grad()
def on_a_grid(net: Diffusion, token: int, steps: int) -> float:
    """The ancestral sampler's probability of a token, its chain integrated on a grid."""
    grid = torch.linspace(-9, 9, 1201, dtype=torch.float64)
    run = laid(net, [[1, 0]])
    for name in ("sources", "is_real", "states", "is_place"):
        setattr(run, name, getattr(run, name).repeat_interleave(len(grid), 0))

    def law(time: float) -> tuple[Tensor, Tensor]:
        gamma = net.schedule(torch.full((len(grid), 1), time, dtype=torch.float64))
        first = net.denoise(run, grid[:, None, None], gamma)[0]
        return net.denoise(run, grid[:, None, None], gamma, first)[0], gamma

    found = law(0.0)[0][:, 0, token].exp()
    for step in range(1, steps + 1):
        log_probs, now = law(step / steps)
        then = net.schedule(torch.full_like(now, (step - 1) / steps))
        clean = net.mean(log_probs)
        mean = ancestral(grid[:, None, None], clean, now, then, torch.zeros(len(grid), 1, 1))[:, 0, 0]
        spread = (torch.sigmoid(then[0, 0]) * -torch.expm1(then - now)[0, 0]).sqrt()
        kernel = torch.exp(-0.5 * ((grid - mean[:, None]) / spread) ** 2) / (spread * math.sqrt(2 * math.pi))
        found = kernel @ found * (grid[1] - grid[0])
    return float((torch.exp(-0.5 * grid**2) / math.sqrt(2 * math.pi) * found).sum() * (grid[1] - grid[0]))


@torch.no_grad()
def mean_bound(net: Diffusion, steps: int, rows: int = 20_000) -> tuple[float, float]:
    torch.manual_seed(0)
    none = torch.zeros(rows, 0, dtype=torch.int64)
    run = laid(net, [[1, 0]] * rows, none, torch.zeros(rows, dtype=torch.int64))
    values = bound(net, run, steps)
    return float(values.mean()), float(values.std()) / rows**0.5


@pytest.mark.parametrize("steps", [3, 12])
def test_the_bound_lies_above_the_integral(steps: int) -> None:
    probs = [on_a_grid(likelihood_model(token), token, steps) for token in (0, 1)]
    assert sum(probs) == pytest.approx(1.0, abs=1e-6)
    for token, prob in enumerate(probs):
        value, error = mean_bound(likelihood_model(token), steps)
        assert value > -math.log(prob) - 4 * error


def test_the_bound_of_the_best_network_tends_to_the_entropy() -> None:
    entropy = -(0.3 * math.log(0.3) + 0.7 * math.log(0.7))
    gaps, slack = [], 0.0
    for steps in (3, 12, 0):
        both = [mean_bound(likelihood_model(token), steps) for token in (0, 1)]
        gaps.append(0.3 * both[0][0] + 0.7 * both[1][0] - entropy)
        slack = 4 * max(error for _, error in both)
    assert gaps[0] > gaps[1] > gaps[2] and abs(gaps[2]) < slack


def test_a_bound_is_refused_where_there_is_none() -> None:
    with pytest.raises(ConfigError, match="no bound"):
        check_bound(network())


def test_a_step_of_each_solver_is_the_textbooks() -> None:
    torch.manual_seed(0)
    clean, noise, other = torch.randn(3, 2, 4, 5, dtype=torch.float64)
    now, then = torch.full((2, 4), 1.5, dtype=torch.float64), torch.full((2, 4), -0.5, dtype=torch.float64)
    state = noised(clean, now, noise)
    torch.testing.assert_close(ddim(state, clean, now, then), noised(clean, then, noise))
    (alpha, sigma), (alpha_s, sigma_s) = scales(now), scales(then)
    ratio = (alpha / alpha_s)[..., None]
    moved = sigma[..., None] ** 2 - ratio**2 * sigma_s[..., None] ** 2  # variance that one step adds
    mean = ratio * sigma_s[..., None] ** 2 / sigma[..., None] ** 2 * state
    mean = mean + alpha_s[..., None] * moved / sigma[..., None] ** 2 * clean
    spread = (moved * sigma_s[..., None] ** 2 / sigma[..., None] ** 2).sqrt()
    torch.testing.assert_close(ancestral(state, clean, now, then, other), mean + spread * other)
    torch.testing.assert_close(ancestral(state, clean, now, now, other), state)


@pytest.mark.parametrize("name", ["cosine", "sqrt", "linear", "learned"])
def test_noise_rises_with_time(name: str) -> None:
    schedule = Schedule(name).double()
    if name == "learned":
        torch.nn.init.normal_(schedule.pieces)
    times = torch.linspace(0, 1, 97, dtype=torch.float64)
    found = schedule(times).detach()
    assert bool((found.diff() >= 0).all()) and float(found[-1] - found[0]) > 6
    if name == "learned":
        inside = times[:-1] + 1e-3
        slopes = (schedule(inside + 1e-6) - schedule(inside)).detach() / 1e-6
        torch.testing.assert_close(schedule.slope(inside).detach(), slopes, rtol=1e-4, atol=1e-4)


def test_left_places_finish_first() -> None:
    times = torch.stack([staggered(torch.tensor(at / 20.0), 6, 12) for at in range(20, -1, -1)])
    assert bool((times[0] == 1).all()) and bool((times[-1] == 0).all())
    assert bool((times.diff(dim=0) <= 1e-6).all()) and bool((times.diff(dim=1) >= -1e-6).all())
    ends = [(column <= 0).nonzero()[0, 0].item() for column in times.T]
    assert ends == sorted(ends) and ends[0] < ends[-1]


def test_poisson_times_have_the_mean_that_was_asked() -> None:
    torch.manual_seed(0)
    times = poisson_times(torch.full((4000,), 0.4), 5, 50)
    assert float(times.mean()) == pytest.approx(0.4, abs=4 * (0.4 / 50 / 20_000) ** 0.5)
    assert float(times.var()) == pytest.approx(0.4 / 50, rel=0.05) and len(times[0].unique()) > 1


def test_each_tokens_time_falls_on_its_own() -> None:
    net = network(times="poisson")
    plan = Plan(steps=5)
    solve(net, laid(net, SOURCES), plan, [1, 2, 3])
    times = torch.stack(plan.trace)
    assert bool((times.diff(dim=0) <= 0).all()) and bool((times[-1] == 0).all())
    assert bool((times[2].std(1) > 0).all())


def test_equal_times_are_the_standard_diffusion() -> None:
    own, plain = network(times="poisson"), network()
    plain.load_state_dict({name: weight for name, weight in own.state_dict().items() if "predictor" not in name})
    ours = solve(own, laid(own, SOURCES), Plan(steps=4, times="equal", solver="ancestral"), [1, 2, 3])
    # The standard process, with one time for the whole text, written out.
    run, keys, said = laid(plain, SOURCES), [1, 2, 3], None
    state = drawn(keys, 6, 8, 0)
    for step in range(4):
        gamma, following = (plain.schedule(torch.tensor(1 - at / 4, dtype=torch.float64)) for at in (step, step + 1))
        with torch.no_grad():
            said = plain.denoise(run, state, gamma.expand(3, 6), said)[0]
            clean = said.exp() @ plain.vectors
        share = -torch.expm1(following - gamma)
        mean = torch.sigmoid(-following).sqrt() * ((1 - share) * state / torch.sigmoid(-gamma).sqrt() + share * clean)
        state = mean + (torch.sigmoid(following) * share).sqrt() * drawn(keys, 6, 8, step + 1)
    torch.testing.assert_close(ours, said)


def test_the_source_stays_clean() -> None:
    net, seen = network(is_joined=True), []
    net.encoder[0].register_forward_pre_hook(lambda _, given: seen.append(given[0][:, :8].clone()))
    solve(net, laid(net, SOURCES), Plan(steps=4), [1, 2, 3])
    assert len(seen) == 4 and all(torch.equal(seen[0], other) for other in seen)


@pytest.mark.parametrize("settings", [{}, {"space": "simplex"}, {"is_joined": True}, {"times": "staggered"}])
def test_a_row_is_as_it_is_alone_and_the_seed_decides(settings: dict[str, Any]) -> None:
    net = network(**settings)
    laws = solve(net, laid(net, SOURCES), Plan(steps=3), [7, 8, 9])
    for at, source in enumerate(SOURCES):
        alone = solve(net, laid(net, [source]), Plan(steps=3), [7 + at])
        torch.testing.assert_close(alone[0], laws[at])
    assert not torch.allclose(solve(net, laid(net, SOURCES), Plan(steps=3), [1, 1, 1]), laws)


def written(net: Diffusion, method: ContinuousDiffusion, seed: int = 1) -> tuple[list[list[int]], int]:
    rows = [Row([2], 1, row_key(seed, at), 40, (0,), source=source) for at, source in enumerate(SOURCES)]
    run = make_run(method, target=NarModel(net))
    return [row.written for row in drive(run, rows) and rows], run.counters["target"].nfe


def test_calls_are_counted_and_the_seed_decides_the_text() -> None:
    net = network()
    first, calls = written(net, ContinuousDiffusion(steps=4))
    assert written(net, ContinuousDiffusion(steps=7))[1] == calls + 3
    assert written(net, ContinuousDiffusion(steps=4))[0] == first
    assert written(net, ContinuousDiffusion(steps=4), seed=2)[0] != first
    assert written(net, ContinuousDiffusion(steps=4, candidates=3))[1] == calls


def test_simplex_states_are_their_own_argmax() -> None:
    net = network(space="simplex")
    tokens = torch.arange(17)
    assert torch.equal(net.clean(tokens).argmax(-1), tokens) and set(net.clean(tokens).unique().tolist()) == {-1.0, 1.0}


def test_the_central_text_is_most_like_the_others() -> None:
    assert central([[1, 2, 9], [1, 2, 3], [4, 2, 3]]) == 1
    assert central([[], [], []]) == 0


@pytest.mark.parametrize("settings", [{"objective": "bound"}, {"schedule": "learned"}, {"length": 0}, {"steps": 0}])
def test_contradictions_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        network(**settings)


def test_no_steps_and_texts_too_long_are_refused() -> None:
    with pytest.raises(ConfigError, match="steps"):
        ContinuousDiffusion(steps=0)
    with pytest.raises(ConfigError, match="denoise nothing"):
        Plan(steps=0)
    net = network()
    with pytest.raises(ConfigError, match="do not fit into 6 places"):
        net.padded(laid(net, [[1, 0]], torch.ones(1, 6, dtype=torch.int64), torch.tensor([6])))
