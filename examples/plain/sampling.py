"""Sampling from logits, written plainly in numpy: processors, cuts, and noise that is a function of its place.

Used by the other files here, and by tests as an oracle; imports nothing of outpace.

The noise, as documented: mix = the finaliser of splitmix64 (64-bit, wrapping); KEY = blake2b-64("row SEED SAMPLE") and
base = blake2b-64("node KEY STREAM VISIT"), both read as little-endian signed; then, with G = 0x9E3779B97F4A7C15,
    node = mix(position * G + base),  bits = mix(node + id * G),  uniform = ((bits >> 12) + 1/2) / 2**52.
A token is argmax(log p + Gumbel) with Gumbel = -log(-log(uniform)); ties and cuts go by lowest id.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import numpy as np

GOLDEN = 0x9E3779B97F4A7C15
TARGET, DRAFT, ACCEPT = 0, 1, 2
WRAP = (1 << 64) - 1


@dataclass
class Settings:
    """The usual options; the defaults change nothing."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = field(default_factory=dict)
    bad_words: tuple[tuple[int, ...], ...] = ()
    min_tokens: int = 0
    end_tokens: tuple[int, ...] = ()


def process(logits: np.ndarray, text: list[int], num_prompt: int, settings: Settings) -> np.ndarray:
    """Apply what depends on the text so far to logits [V]."""
    out = np.array(logits, dtype=np.float64)
    for token in set(text):
        out[token] = (
            out[token] / settings.repetition_penalty if out[token] > 0 else out[token] * settings.repetition_penalty
        )
    written = text[num_prompt:]
    for token in set(written):
        out[token] -= settings.presence_penalty + settings.frequency_penalty * written.count(token)
    for token, bias in settings.logit_bias.items():
        out[token] += bias
    for word in settings.bad_words:
        head = list(word[:-1])
        if not head or text[-len(head) :] == head:
            out[word[-1]] = -np.inf
    if len(written) < settings.min_tokens:
        out[list(settings.end_tokens)] = -np.inf
    return out


def law(logits: np.ndarray, settings: Settings) -> np.ndarray:
    """Return the probabilities [V] that a token is drawn from; one-hot at temperature 0."""
    if settings.temperature == 0:
        return np.eye(len(logits))[int(np.argmax(logits))]
    kept = sorted(range(len(logits)), key=lambda token: (-logits[token], token))
    if settings.top_k:
        kept = kept[: settings.top_k]
    probs = softmax(logits[kept] / settings.temperature)
    before = np.cumsum(probs) - probs
    keep = (before < settings.top_p) & (probs >= settings.min_p * probs[0])
    if settings.typical_p < 1:
        probs = np.where(keep, probs, 0) / probs[keep].sum()
        log = np.log(np.where(probs > 0, probs, 1))
        surprise = np.where(probs > 0, np.abs(-log + (probs * log).sum()), np.inf)
        order = np.argsort(surprise, kind="stable")
        mass = np.cumsum(probs[order]) - probs[order]
        keep[order[mass >= settings.typical_p]] = False
    out = np.zeros(len(logits))
    out[np.array(kept)[keep]] = probs[keep]
    return out / out.sum()


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return normalised exponentials."""
    shifted = np.exp(logits - logits.max())
    return shifted / shifted.sum()


def digest(text: str) -> int:
    """Return 64 bits of blake2b as a signed integer."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little", signed=True)


def mix(bits: int) -> int:
    """Return splitmix64's finaliser of 64 bits."""
    bits &= WRAP
    bits = (bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9 & WRAP
    bits = (bits ^ (bits >> 27)) * 0x94D049BB133111EB & WRAP
    return bits ^ (bits >> 31)


def uniforms(seed: int, sample: int, stream: int, position: int, ids: list[int], visit: int = 0) -> np.ndarray:
    """Return one number in (0, 1) per token id."""
    key = digest(f"row {seed} {sample}")
    node = mix(position * GOLDEN + digest(f"node {key} {stream} {visit}"))
    return np.array([((mix(node + token * GOLDEN) >> 12) + 0.5) / 2**52 for token in ids])


def draw(
    probs: np.ndarray, seed: int, sample: int, position: int, stream: int = TARGET, visit: int = 0
) -> int:  # fmt: skip
    """Return the token that stands at `position` under this seed."""
    noise = -np.log(-np.log(uniforms(seed, sample, stream, position, list(range(len(probs))), visit)))
    with np.errstate(divide="ignore"):
        return int(np.argmax(np.log(probs) + noise))
