"""What must hold on another device: the same numbers as on the CPU, within rounding, and the same noise to the bit.

Each check takes a device and raises `AssertionError` with a sentence. They need nothing but the package, so that they
run where no test runner is installed (`outpace.bench.gpu`); tests run them on the CPU itself, and on a GPU where there
is one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from outpace.api.engine import LanguageModel, load
from outpace.cache import Cache
from outpace.models.graphs import Graphs, make_graphs
from outpace.models.loading import load_model
from outpace.models.transformer import Transformer
from outpace.sampling import Sampler, Sampling, row_key
from outpace.sampling.noise import Stream, gumbel, node_key, uniform
from outpace.testing.adapters import check_adapter
from outpace.types import Outputs

__all__ = [
    "DEVICE_CHECKS",
    "check_adapters",
    "check_caches",
    "check_canvases",
    "check_forwards",
    "check_graphs",
    "check_noise",
    "check_picks",
    "check_texts",
]

_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}  # of the largest number, as `check_adapter` has it
_PROMPTS = ("Once upon a time there was a cat. The cat", "One day, Tom and")


def check_noise(device: str) -> None:
    """Uniform noise has the same bits; Gumbel noise, which takes logarithms, differs in the last places at most."""
    position, ids = torch.arange(40).view(2, 20) * 977, torch.arange(500)
    drawn = []
    for place in ("cpu", device):
        key = node_key([row_key(1, 0), row_key(1, 1)], Stream.TARGET, position.to(place), 3)
        drawn.append((key.cpu(), uniform(key, ids.to(place)).cpu(), gumbel(key, ids.to(place)).cpu()))
    (keys, plain, noise), (others, ours, shaped) = drawn
    assert torch.equal(keys, others), "The keys of the noise have other bits than on the CPU."
    assert torch.equal(plain, ours), "The uniform noise has other bits than on the CPU."
    off = float((noise - shaped).abs().max())
    assert off < 1e-12, f"The Gumbel noise is off by {off:.3g}."


def check_picks(device: str) -> None:
    """The same logits give the same tokens, whatever is cut and however it is penalised."""
    logits = 3 * torch.randn(3, 5, 400, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    position = torch.arange(15).view(3, 5) + 7
    for settings in (Sampling(), Sampling(temperature=0.8), Sampling(temperature=1.2, top_k=30, top_p=0.9, min_p=0.01)):
        sampler = Sampler(settings, [row_key(4, row) for row in range(3)])
        picks = [sampler.pick(logits.to(place).clone(), position.to(place)).cpu() for place in ("cpu", device)]
        assert torch.equal(*picks), f"Tokens drawn with {settings} differ from the CPU's."


def check_caches(device: str) -> None:
    """Keeping a tree's path, retaining, rows that leave, join and fork, and growth move the same entries."""
    found = []
    for place in ("cpu", device):
        source = torch.Generator().manual_seed(3)
        buffers = [torch.randn(3, 2, 12, 4, generator=source).to(place) for _ in range(2)]
        cache = Cache(buffers, 2, lengths=[3, 1, 4], limit=40)
        cache.keep([[0, 2, 3], [1], []])
        cache.reserve(20)
        cache.retain([[0, 1, 4], [0, 1], [0, 2, 3, 5]])
        joined = Cache.join([cache.rows([2, 0, 0]), cache])
        joined.leave([0, 4, 2])
        joined.truncate([2, 9, 9])
        found.append((joined.lengths, [buffer.cpu() for buffer in joined.fork().buffers]))
    (lengths, plain), (others, ours) = found
    assert lengths == others, f"Rows hold {others} entries, not {lengths}."
    assert all(torch.equal(*pair) for pair in zip(plain, ours, strict=True)), "The entries of a cache differ."


def check_forwards(
    device: str,
    names: Sequence[str] = ("stories", "stories-mask", "stories-block"),
    kinds: Sequence[torch.dtype] = tuple(_TOLERANCE),
) -> None:
    """Zoo decoders give the CPU's logits and hidden states: prompts, ragged rows, trees, canvases."""
    for name in names:
        for kind in kinds:
            plain, ours = (_forwards(load_model(name, kind, place, pack=False)) for place in ("cpu", device))
            for what, wanted in plain.items():
                off = float((ours[what] - wanted).abs().max()) / float(wanted.abs().max())
                assert off <= _TOLERANCE[kind], f"{name} in {kind}, {what}: off by {off:.3g} of the largest number."


def _forwards(model: Transformer) -> dict[str, Tensor]:
    """Return what a prompt, then ragged rows, then a tree are told, on the CPU in float64."""
    where, source = model.device, torch.Generator().manual_seed(5)
    tokens = torch.randint(2, model.spec.vocab_size, (2, 12), generator=source).to(where)
    steps = torch.arange(12, device=where).expand(2, -1)
    outputs = Outputs((0, model.spec.num_layers), has_last=True)
    cache = model.new_cache(2, 40)
    prompt = model.score(tokens, steps, None, cache, outputs=outputs)
    cache.keep([range(8), range(5)])
    held = torch.tensor([[8], [5]], device=where)
    ragged = model.score(tokens[:, :3], held + steps[:, :3], None, cache)
    sight = torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 1, 0, 1]], dtype=torch.bool, device=where)
    depth = held + torch.tensor([0, 1, 1, 2], device=where)
    tree = model.score(tokens[:, :4], depth, sight.expand(2, -1, -1), cache, torch.tensor([[0, 3]] * 2, device=where))
    assert prompt.last is not None  # it was asked for
    found = {"logits": prompt.logits, "last hidden states": prompt.last, "ragged rows": ragged.logits}
    found |= {f"entry of layer {layer}": states for layer, states in prompt.taps.items()}
    return {what: states.double().cpu() for what, states in {**found, "a tree": tree.logits}.items()}


def check_adapters(device: str) -> None:
    """The contract of adapters holds on the device: a token is told the same however a text is cut."""
    for graphs in ("off", "auto"):
        check_adapter(load("stories-draft", dtype="float32", device=device, is_compiled=False, graphs=graphs).target)


def check_graphs(device: str, graphs: Graphs | None = None) -> None:
    """Recorded forwards give what plain ones give while lengths, tokens and trees change, and none is given up.

    Args:
        device: where there are graphs.
        graphs: made otherwise than the device makes them.
    """
    for kind in (torch.float32, torch.bfloat16):
        plain = load_model("stories-draft", kind, device, pack=False)
        recorded = load_model("stories-draft", kind, device, pack=False)
        found = graphs.fresh() if graphs is not None else make_graphs("on", torch.device(device))
        assert found is not None  # asked for
        recorded.use_graphs(found)
        caches = [plain.new_cache(2, 80), recorded.new_cache(2, 80)]
        source = torch.Generator().manual_seed(6)
        for step in range(6):
            lengths = [step, 3 * (step % 3)]
            tokens = torch.randint(2, plain.spec.vocab_size, (2, 5), generator=source).to(device)
            position = torch.tensor(lengths, device=device)[:, None] + torch.arange(5, device=device)
            sight = torch.rand(2, 5, 5, generator=source).to(device) < 0.5 if step % 2 else None
            logits = []
            for model, cache in zip((plain, recorded), caches, strict=True):
                cache.lengths = list(lengths)
                logits.append(model.score(tokens, position, sight, cache).logits.double())
            off = float((logits[0] - logits[1]).abs().max()) / float(logits[0].abs().max())
            allowed = _TOLERANCE.get(kind, 0.05)
            assert off <= allowed, f"A recorded forward in {kind} is off by {off:.3g} of the largest number."
        assert not found.fault, found.fault
        counts = (found.num_recorded, found.num_replayed)
        assert counts == (2, 4), f"{counts[0]} forwards were recorded and {counts[1]} replayed, not 2 and 4."


def check_texts(device: str, max_tokens: int = 24) -> None:
    """In float64 the texts are the CPU's, greedy and sampled, plainly decoded and drafted."""
    plain = _language_model("stories", "cpu")
    ours = _language_model("stories", device)
    for temperature in (0.0, 0.8):
        wanted = plain.generate(list(_PROMPTS), max_tokens=max_tokens, temperature=temperature)
        for method in ("autoregressive", "suffix", "token-recycling", "draft-model"):
            found = ours.generate(list(_PROMPTS), method=method, max_tokens=max_tokens, temperature=temperature)
            is_same = [result.tokens for result in found] == [result.tokens for result in wanted]
            assert is_same, f"{method} at temperature {temperature} writes another text than the CPU does."


def check_canvases(device: str, max_tokens: int = 16) -> None:
    """In float64 a masked and a block model fill a canvas as on the CPU."""
    for name in ("stories-mask", "stories-block"):
        texts = []
        for place in ("cpu", device):
            lm = _language_model(name, place)
            found = lm.generate(list(_PROMPTS), method="masked-diffusion", max_tokens=max_tokens, temperature=0.7)
            texts.append([result.tokens for result in found])
        assert texts[0] == texts[1], f"{name} writes another text than on the CPU."


def _language_model(name: str, device: str) -> LanguageModel:
    return load(name, dtype="float64", device=device, is_compiled=False)


DEVICE_CHECKS: tuple[Callable[[str], None], ...] = (
    check_noise,
    check_picks,
    check_caches,
    check_forwards,
    check_adapters,
    check_graphs,
    check_texts,
    check_canvases,
)
