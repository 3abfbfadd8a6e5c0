"""What a step on a canvas costs: our forward beside a direct forward of transformers, and the time outside forwards.

    python -m outpace.bench.canvas_steps MODEL [--params 350M] [--repeats 30] [--rows 32] [--cache dual]

The forward of transformers is that of `LlamaForCausalLM` with the same weights, position ids and 4-D mask, run in turns
with ours, on the same tokens; medians over interleaved repeats.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from outpace.api.engine import LanguageModel, load
from outpace.bench.command import new_parser, run_command
from outpace.bench.inflate import inflate, parse_size
from outpace.bench.report import Table
from outpace.bench.rounds import in_turns, timed
from outpace.bench.stats import median_ratio
from outpace.errors import ConfigError, ModelError
from outpace.methods.diffusion.masked_diffusion import MaskedDiffusion
from outpace.models.opening import locate

__all__ = ["main", "overhead_ms", "step_times"]

SHAPES = ((0, 16), (0, 64), (0, 256), (256, 16), (256, 32))  # cached entries, tokens in the forward


def step_times(lm: LanguageModel, directory: Path, repeats: int, is_full: bool) -> list[dict[str, Any]]:
    """Return, per shape, median milliseconds of our forward and of transformers', and the median of paired ratios.

    Args:
        lm: the canvas model.
        directory: its files.
        repeats: pairs per shape.
        is_full: all tokens see all others (else the model's own blocks).
    """
    other = _transformers(directory, lm.target.dtype)
    vocab = lm.target.capabilities.vocab_size
    generator = torch.Generator().manual_seed(0)
    found = []
    for held, width in SHAPES:
        tokens = torch.randint(2, vocab, (1, held + width), generator=generator)
        ours, theirs = _our_forward(lm, tokens, held), _their_forward(other, lm, tokens, held, is_full)
        seconds = in_turns({"ours": timed(ours), "transformers": timed(theirs)}, repeats)
        medians = {f"{name}_ms": 1e3 * statistics.median(times) for name, times in seconds.items()}
        found.append({"cached": held, "tokens": width, **medians, "ratio": median_ratio(*seconds.values())})
    return found


def _our_forward(lm: LanguageModel, tokens: torch.Tensor, held: int) -> Callable[[], Any]:
    target, size = lm.target, tokens.shape[1]
    cache = target.new_cache(1, size + 1)
    places = torch.arange(size).unsqueeze(0)
    if held:
        target.score(tokens[:, :held], places[:, :held], None, cache, torch.zeros(1, 0, dtype=torch.int64))
        cache.retain([range(held)])
    return lambda: target.score(tokens[:, held:], places[:, held:], None, cache)


def _transformers(directory: Path, dtype: torch.dtype) -> Any:
    from safetensors.torch import load_file

    try:
        from transformers import LlamaConfig, LlamaForCausalLM
    except ImportError:
        raise ConfigError("This comparison needs transformers.", "pip install 'outpace[transformers]'") from None
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    for name in ("architectures", "model_type", "attention", "outpace_inflated"):
        config.pop(name, None)
    model: Any = LlamaForCausalLM(LlamaConfig(**config))
    model = model.to(dtype).eval()
    weights: dict[str, torch.Tensor] = {}
    for file in sorted(directory.glob("*.safetensors")):
        weights |= load_file(file)
    missing, unknown = model.load_state_dict(weights, strict=False)
    if unknown or set(missing) - {"lm_head.weight"}:  # a tied head is not in the file
        raise ModelError("transformers reads other tensors than the file has.", "Name a Llama-shaped model.")
    return model


def _their_forward(model: Any, lm: LanguageModel, tokens: torch.Tensor, held: int, is_full: bool) -> Callable[[], Any]:
    from transformers import DynamicCache

    size = tokens.shape[1]
    block = lm.target.capabilities.block_size or 1
    places = torch.arange(size)
    seen = torch.ones(size, size, dtype=torch.bool)
    if not is_full:
        seen = places // block <= (places // block).unsqueeze(1)
    mask = torch.zeros(size, size, dtype=model.dtype).masked_fill(~seen, float("-inf"))[None, None]
    cache = DynamicCache()
    if held:
        with torch.inference_mode():
            model(
                tokens[:, :held],
                attention_mask=mask[..., :held, :held],
                position_ids=places[None, :held],
                past_key_values=cache,
            )

    def forward() -> Any:
        with torch.inference_mode():
            given = {"past_key_values": cache} if held else {"use_cache": False}
            found = model(
                tokens[:, held:], attention_mask=mask[..., held:, :], position_ids=places[None, held:], **given
            )
        if held:
            cache.crop(held - size)  # negative: how many to drop
        return found.logits

    return forward


def overhead_ms(
    lm: LanguageModel, prompts: list[str], max_tokens: int, rows: int = 1, temperature: float = 0.0, **settings: Any
) -> float:
    """Return milliseconds per step outside forwards, median over three rounds, of plain decoding of one token per step.

    Args:
        lm: a canvas model.
        prompts: each written by itself with one row, else repeated up to so many rows side by side.
        max_tokens: per row.
        rows: side by side.
        temperature: of the draws; 0 = the likeliest tokens.
        settings: of the method.
    """
    batches = [[prompt] for prompt in prompts] if rows == 1 else [[prompts[i % len(prompts)] for i in range(rows)]]
    found: list[float] = []
    for batch in batches * 3:
        given: dict[str, Any] = {"options": settings, "max_tokens": max_tokens, "temperature": temperature}
        results = lm.generate(batch, method="masked-diffusion", **given)
        timing, steps = results[0].timing, max(result.usage.num_steps for result in results)
        found.append(1e3 * (timing["decode_s"] - timing["score_s"]) / steps)
    return statistics.median(found)


def _work(given: argparse.Namespace) -> None:
    if given.rows < 1 or given.repeats < 1:
        raise ConfigError("There is nothing to measure.", "Give at least 1 to --rows and --repeats.")
    MaskedDiffusion(cache=given.cache)  # refuses an unknown one before anything is measured
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(locate(given.model)[0])
        if given.params:
            directory = inflate(directory, Path(folder) / "model", parse_size(given.params))
        lm = load(directory, dtype=given.dtype, generation_config="none")
        is_full = lm.target.capabilities.attention == "full"
        cells = [
            [str(row["cached"]), str(row["tokens"]), *(f"{row[name]:.2f}" for name in _FIGURES)]
            for row in step_times(lm, directory, given.repeats, is_full)
        ]
        print(Table("", ("cached", "tokens", "ours, ms", "transformers, ms", "ratio"), cells).markdown())
        prompts = ["Once upon a time", "The little dog wanted to", "One day, a girl named Lily"]
        for rows in (1, given.rows):
            found = overhead_ms(lm, prompts, 64, rows, given.temperature, cache=given.cache)
            print(f"\noutside forwards, {rows} rows: {found:.3f} ms per step")


_FIGURES = ("ours_ms", "transformers_ms", "ratio")


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; return the exit status."""
    parser = new_parser("canvas_steps", __doc__)
    parser.add_argument("model", nargs="?", default="stories-block")
    parser.add_argument("--params", default="", help="inflate the model first, as in 350M")
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument(
        "--rows", type=int, default=32, help="rows side by side, for what a step costs outside forwards"
    )
    parser.add_argument("--cache", default="auto", help="the cache policy, for the same")
    parser.add_argument("--temperature", type=float, default=0.0, help="of the draws, for the same")
    parser.add_argument("--dtype", default="auto")
    return run_command(parser, _work, arguments)


if __name__ == "__main__":
    sys.exit(main())
