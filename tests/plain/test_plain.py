"""The package writes, token by token, what the plain oracles in examples/plain write."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from outpace.methods.autoregressive import Autoregressive
from outpace.methods.diffusion.fast_dllm import FastDllm
from outpace.methods.diffusion.masked_diffusion import MaskedDiffusion
from outpace.methods.parallel.jacobi import Jacobi
from outpace.methods.speculative.draft_model import DraftModel
from outpace.methods.speculative.layer_skip import LayerSkip
from outpace.methods.speculative.prompt_lookup import PromptLookup
from outpace.sampling import Sampling, row_key, uniform
from outpace.sampling.noise import node_key
from outpace.testing.toy import ToyModel
from outpace.testing.world import END, PROMPTS, SETTINGS, drafter_for, make_rows, target_for, write
from outpace.types import Stream

PLAIN = Path(__file__).parents[2] / "examples" / "plain"
NAMES = ("sampling", "autoregressive", "speculative", "jacobi", "masked_diffusion")


@pytest.fixture(scope="module")
def plain() -> Iterator[Any]:
    sys.path.insert(0, str(PLAIN))
    try:
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in NAMES})
    finally:
        sys.path.remove(str(PLAIN))
        for name in NAMES:
            sys.modules.pop(name, None)


def whole(model: ToyModel) -> Any:
    """The toy model as the oracles see one: a whole text in, logits out."""

    def score(text: list[int]) -> np.ndarray:
        tokens = torch.tensor([text])
        cache = model.new_cache(1, len(text))
        return model.score(tokens, torch.arange(len(text)).unsqueeze(0), None, cache).logits[0].numpy()

    return score


def oracle_settings(plain: Any, settings: Sampling, end_tokens: tuple[int, ...] = ()) -> Any:
    names = plain.sampling.Settings.__dataclass_fields__.keys() - {"end_tokens"}
    return plain.sampling.Settings(**{name: getattr(settings, name) for name in names}, end_tokens=end_tokens)


# The oracle has no constraints; laws of checkpoints are compared with transformers' own (test_generation_config).
BEYOND = ("grammar", "n-grams", "forced and suppressed")


@pytest.mark.parametrize("name", [name for name in SETTINGS if name not in BEYOND])
def test_plain_decoding(plain: Any, name: str) -> None:
    settings = SETTINGS[name]
    ends = (END,) if settings.min_tokens else ()
    rows = write(Autoregressive(), settings, make_rows(end_tokens=ends))
    chosen = oracle_settings(plain, settings, ends)
    for sample, (row, prompt) in enumerate(zip(rows, PROMPTS, strict=True)):
        wanted = plain.autoregressive.generate(whole(target_for("causal")), list(prompt), 16, chosen, 7, sample)
        assert row.written == wanted


@pytest.mark.parametrize("name", ["greedy", "temperature 0.7", "top-p", "everything"])
@pytest.mark.parametrize(
    "method",
    [
        DraftModel(draft_len=3),
        DraftModel(draft_len=3, tree_width=2),
        PromptLookup(),
        Jacobi(),
        LayerSkip(),
    ],
    ids=["draft-model", "tree", "prompt-lookup", "jacobi", "layer-skip"],
)
def test_exact_methods(plain: Any, method: Any, name: str) -> None:
    settings = SETTINGS[name]
    rows = write(method, settings, make_rows(end_tokens=(END,)))
    chosen = oracle_settings(plain, settings, (END,))
    for sample, (row, prompt) in enumerate(zip(rows, PROMPTS, strict=True)):
        wanted = plain.autoregressive.generate(whole(target_for("causal")), list(prompt), 16, chosen, 7, sample)
        assert row.written == wanted


@pytest.mark.parametrize("rule", ["match", "rejection"])
@pytest.mark.parametrize("name", ["greedy", "temperature 0.7", "top-k", "presence penalty"])
def test_speculative(plain: Any, rule: str, name: str) -> None:
    method = DraftModel(draft_len=3, is_adaptive=False, accept_rule=rule)
    rows = write(method, SETTINGS[name])
    chosen = oracle_settings(plain, SETTINGS[name])
    for sample, (row, prompt) in enumerate(zip(rows, PROMPTS, strict=True)):
        wanted, accepted = plain.speculative.speculate(
            whole(target_for("causal")), whole(drafter_for("causal")), list(prompt), 16, chosen, 3, rule, 7, sample
        )
        assert row.written == wanted
        assert row.usage.num_accepted == accepted


@pytest.mark.parametrize("name", ["greedy", "top-k"])
def test_jacobi_takes_the_same_steps(plain: Any, name: str) -> None:
    rows = write(Jacobi(window=5), SETTINGS[name])
    chosen = oracle_settings(plain, SETTINGS[name])
    for sample, (row, prompt) in enumerate(zip(rows, PROMPTS, strict=True)):
        wanted, forwards = plain.jacobi.jacobi(whole(target_for("causal")), list(prompt), 16, chosen, 5, 7, sample)
        assert row.written == wanted
        assert abs(row.usage.num_steps - forwards) <= 1  # the package's last window is cut to the room left


@pytest.mark.parametrize(
    ("method", "threshold"),
    [
        (MaskedDiffusion(block=4), 2.0),
        (MaskedDiffusion(block=4, per_step=3, ahead=0), 2.0),
        (FastDllm(block=8, threshold=0.2, cache="none"), 0.2),
        (FastDllm(block=8, threshold=0.2, ahead=3, refresh=1), 0.2),
    ],
    ids=["all ahead", "none ahead", "threshold", "threshold, some ahead"],
)
@pytest.mark.parametrize("name", ["greedy", "temperature 0.7", "top-p", "logit bias"])
def test_masked_diffusion(plain: Any, name: str, method: Any, threshold: float) -> None:
    model = ToyModel(attention="full", sharpness=8.0)  # sure enough that several places are written at once
    rows = write(method, SETTINGS[name], make_rows(end_tokens=(END,)), target=model)
    chosen = oracle_settings(plain, SETTINGS[name], (END,))
    per_step = getattr(method, "per_step", 1)
    for sample, (row, prompt) in enumerate(zip(rows, PROMPTS, strict=True)):
        wanted, forwards = plain.masked_diffusion.unmask(
            whole(model),
            model.capabilities.mask_id,
            list(prompt),
            16,
            chosen,
            method.block,
            threshold,
            per_step,
            method.ahead,
            7,
            sample,
        )
        assert row.written == wanted
        assert row.usage.num_steps == forwards
    whole_rows = [row for row in rows if len(row.written) == 16]
    is_parallel = per_step > 1 or threshold <= 1
    assert not is_parallel or all(row.usage.num_steps < 16 for row in whole_rows)


def test_noise_is_the_documented_formula(plain: Any) -> None:
    ids = [*range(40), 151_000]
    for seed, sample, stream, position, visit in ((7, 0, 0, 1, 0), (7, 3, 2, 4000, 0), (0, 0, 1, 12, 9)):
        key = node_key([row_key(seed, sample)], Stream(stream), torch.tensor([position]), visit)
        ours = uniform(key, torch.tensor(ids))[0].numpy()
        assert np.array_equal(ours, plain.sampling.uniforms(seed, sample, stream, position, ids, visit))


@pytest.mark.parametrize("name", NAMES[1:])
def test_oracles_run_alone(name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    import runpy

    monkeypatch.syspath_prepend(str(PLAIN))
    runpy.run_path(str(PLAIN / f"{name}.py"), run_name="__main__")
    assert capsys.readouterr().out
    for module in NAMES:
        monkeypatch.delitem(sys.modules, module, raising=False)


def test_oracles_share_nothing_with_the_package() -> None:
    for path in PLAIN.glob("*.py"):
        assert "import outpace" not in path.read_text() and "from outpace" not in path.read_text(), path
