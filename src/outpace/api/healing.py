"""A prompt that ends inside a token goes on without bias: its last tokens are drawn anew, by the law of its covers.

A tokenizer cuts a prompt where it ends, and the model has hardly seen such a cut inside a word: what it writes behind
one is biased. So the tokens that more text might have changed are taken back, and one cover of the prompt's bytes is
drawn by its probability under the model, given that the text begins with these bytes and that the tokens before the
covering one are the tokenizer's own. The rest of the text follows as always. Temperature and cuts act on the law of the
covers as on that of a token; at temperature 0 the likeliest cover is taken. What acts on single tokens (penalties,
biases, bans) begins behind the cover.

Source: Phan et al. (2024), arXiv 2410.09303; the heuristic that it makes exact is known as token healing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from outpace.api.request import Request
from outpace.api.running import Plan, new_text
from outpace.errors import CapabilityError, ConfigError
from outpace.models.byte_covers import CoverRules, Covers, num_shared
from outpace.models.byte_model import cover_rules
from outpace.run.row import Row
from outpace.sampling import Sampler, Sampling
from outpace.sampling.truncation import likeliest_of
from outpace.text.speller import Speller, speller
from outpace.types import Capabilities

if TYPE_CHECKING:
    from outpace.api.engine import LanguageModel
    from outpace.methods.base import Method

__all__ = ["check_healing", "heal"]

_NOTHING = -1  # in place of a token: the prompt's own tokens end where it does


def check_healing(lm: LanguageModel, method: Method, settings: Sampling, request: Request) -> None:
    """Refuse healing where it cannot be had.

    Raises:
        CapabilityError: the model does not go on from a prompt of its own tokens, or has no tokenizer.
        ConfigError: a search, or a constraint, which would be on the prompt's end too.
    """
    offered: Capabilities = lm.target.capabilities
    if lm.tokenizer is None or offered.attention != "causal" or offered.is_encoder_decoder:
        raise CapabilityError("Only a causal model with a tokenizer heals a prompt.", "Leave is_healed out.")
    if method.needs.has_forks or request.search:
        name = method.name if method.needs.has_forks else getattr(request.search, "name", request.search)
        raise ConfigError(f"{name} searches from the prompt as it is cut.", "Leave is_healed out.")
    if request.constraints or settings.constraint is not None:
        raise ConfigError("A constraint and is_healed were given.", "A constraint is on new tokens: leave one out.")


def heal(lm: LanguageModel, plan: Plan) -> None:
    """Draw the tokens at the end of every prompt anew; rows are changed in place, before they join a run.

    A row's prompt ends before the token that covers the prompt's end, if that token writes on; the token is then the
    row's first one, and its text is what it writes beyond the prompt. Costs two forwards per prompt.

    Raises:
        CapabilityError: the tokenizer rewrites the prompt, or does more than join bytes.
    """
    if not plan.request.is_healed or lm.tokenizer is None:
        return
    rules, _ = cover_rules(lm.target, lm.tokenizer, lm.end_tokens, width=0)
    known = dict[tuple[int, ...], Covers | None]()
    for row in plan.rows:
        prompt = tuple(row.tokens)
        if prompt not in known:
            known[prompt] = _covers(rules, speller(lm.tokenizer, lm.target.capabilities.vocab_size), prompt)
        if (covers := known[prompt]) is not None:
            _draw(lm, row, covers, plan)


def _covers(rules: CoverRules, spells: Speller, prompt: tuple[int, ...]) -> Covers | None:
    """Return the covers of a prompt's bytes behind its last special token; None where nothing is to be healed."""
    first = next((at for at in range(len(prompt), 0, -1) if not spells.bytes[prompt[at - 1]]), 0)
    text = spells.join(prompt[first:])
    prefixes = rules.prefixes(text) if text else None
    if prefixes is None:  # it ends with a special token, or inside a character
        return None
    # A prompt without a start token gets one only where the covers do not even share their first token.
    opening = prompt[:first] or (() if num_shared([ids for ids, _ in prefixes]) else rules.opening)
    return replace(rules, opening=opening).weigh(text, prefixes)


@dataclass(frozen=True, slots=True, eq=False)
class _Options:
    """The covers of a prompt that one can be drawn from.

    Attributes:
        logits: [K] float64 log-probabilities, up to a constant.
        tokens: what each ends with, -1 = it ends where the prompt does.
        owners: the number of its prefix.
        laws: of the prefixes.
    """

    logits: Tensor
    tokens: list[int]
    owners: list[int]
    laws: list[Tensor]

    @staticmethod
    def of(covers: Covers) -> _Options:
        """Lay the covers out: of each prefix all tokens that write on, and the prompt's own tokens."""
        pieces, tokens, owners = list[Tensor](), list[int](), list[int]()
        laws = covers.rules.laws.after([one.ids for one in covers.prefixes])
        for number, (one, law) in enumerate(zip(covers.prefixes, laws, strict=True)):
            ids = covers.rules.index.following(covers.text[one.start :])[0]
            is_whole = one.start == len(covers.text)
            pieces.append(torch.tensor([one.weight], dtype=torch.float64) if is_whole else law[ids] + one.weight)
            tokens += [_NOTHING] if is_whole else ids.tolist()
            owners += [number] * (1 if is_whole else len(ids))
        return _Options(torch.cat(pieces), tokens, owners, laws)


def _draw(lm: LanguageModel, row: Row, covers: Covers, plan: Plan) -> None:
    """Draw a cover, and lay the row's tokens accordingly."""
    options, settings = _Options.of(covers), plan.settings
    temperature = settings.temperature if plan.method.draws else 0.0
    settings = replace(settings, temperature=temperature, top_k=min(settings.top_k, len(options.tokens)))
    sampler, position = Sampler(settings, [row.key]), covers.num_shared
    at = int(sampler.pick(options.logits.unsqueeze(0), torch.tensor([position]))[0])
    prefix, token = covers.prefixes[options.owners[at]], options.tokens[at]
    _lay(lm, row, prefix.ids, covers.text[prefix.start :] if token != _NOTHING else b"", plan)
    if token != _NOTHING:
        _write(row, token, options.laws[options.owners[at]], plan)
        if "margins" in plan.request.record:
            row.margins.append(sampler.margin(options.logits, position, 0))


def _lay(lm: LanguageModel, row: Row, ids: tuple[int, ...], rest: bytes, plan: Plan) -> None:
    """Let a row's prompt be some tokens, behind which its first one covers the rest of the bytes."""
    assert lm.tokenizer is not None  # or nothing is healed
    spells = speller(lm.tokenizer, lm.target.capabilities.vocab_size)
    covered = spells.spell(rest)
    if spells.join(covered) != rest:
        raise CapabilityError("The prompt ends with bytes that no token of the model writes.", "Leave is_healed out.")
    row.tokens, row.num_prompt, row.covered = list(ids), len(ids), tuple(covered)
    row.max_tokens = min(row.max_tokens, lm.target.capabilities.max_positions - len(ids))
    row.usage.num_prompt = len(ids)
    row.text = new_text(lm, plan.request, ids, row.covered)


def _write(row: Row, token: int, law: Tensor, plan: Plan) -> None:
    """Let a row's first token be one that covers the end of its prompt."""
    row.push(token)
    row.sources.append("plain")
    row.drafters.append("")
    row.usage.num_emitted = 1
    if "log_probs" in plan.request.record:
        row.log_probs.append(float(law[token]))
    if plan.request.top_log_probs:
        row.top_log_probs.append(likeliest_of(law, plan.request.top_log_probs))
