"""Capability cards: how a checkpoint is to be decoded, which its weights do not tell.

Two checkpoints of one layout may differ in who sees whom, in which position an output speaks of, and in the mask
token. A card holds those facts. It is read from a table of families, then from the keys of `config.json` that state
them, then from what the user says; the last word wins, and contradictions are refused. `outpace.models.unmasking`
puts the shift to the test.

The table is keyed by `model_type` and, where families share one, by further keys of the config.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, NoReturn

from outpace.errors import ConfigError, ModelError, OutpaceError, nearest
from outpace.models.config_values import token_ids

__all__ = ["CARD_TABLE", "Card", "Entry", "card_from_text", "kind_of", "read_card"]

Config = Mapping[str, Any]

_ATTENTION = ("causal", "full", "block", "causal-block")
_BLOCKS = ("block", "causal-block")
_NOISE = ("none", "mask", "uniform")


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """How a checkpoint is decoded.

    Attributes:
        family: the row of the table, or the `model_type` of a causal model.
        attention: "causal"; "full" (every position sees every other); "block" (its own block and all before it);
            "causal-block" (text is causal, and a block behind it sees it and all of itself).
        logits_shift: the output at position i speaks of token i + 1 (Dream); False = of token i. A causal model's
            alignment is its own and is not called a shift.
        noise: what stands at a position that is not written yet: "mask"; "none" for causal models. "uniform" (random
            tokens) is known and refused.
        mask_id: the mask token, None for causal models.
        block_length: positions per block of "block" and "causal-block" attention, 0 otherwise.
        end_tokens: tokens that end a text. What a canvas holds behind the first of them is not text.
    """

    family: str
    attention: str = "causal"
    logits_shift: bool = False
    noise: str = "none"
    mask_id: int | None = None
    block_length: int = 0
    end_tokens: tuple[int, ...] = ()

    def shape(self) -> dict[str, Any]:
        """Return the keyword arguments of `Spec` that the card decides."""
        return {
            "attention": self.attention,
            "block_size": self.block_length,
            "mask_id": self.mask_id,
            "logits_shift": self.logits_shift,
        }

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return {**asdict(self), "end_tokens": list(self.end_tokens)}


@dataclass(frozen=True, slots=True)
class Entry:
    """One row of the table.

    Attributes:
        name: of the family.
        model_type: as `config.json` spells it.
        facts: card fields that hold unless the config says otherwise.
        keys: card field -> keys of the config that state it, the first one present counts.
        signs: of several rows with this `model_type`, the one holds whose signs the config shows: a key that is there
            with this value (None = with any value).
    """

    name: str
    model_type: str
    facts: Mapping[str, Any]
    keys: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    signs: tuple[tuple[str, Any], ...] = ()

    def fits(self, config: Config) -> bool:
        """Return whether this row speaks of such a config: its `model_type`, and any one of the signs."""
        if config.get("model_type") != self.model_type:
            return False
        return not self.signs or any(
            config.get(key) is not None and value in (None, config[key]) for key, value in self.signs
        )


_MASK = {"mask_id": ("mask_token_id",)}
_QWEN_ENDS = (151643, 151645)  # <|endoftext|>, <|im_end|>

CARD_TABLE = (
    Entry(
        "llada_moe",
        "llada",
        {"attention": "full", "mask_id": 156895, "end_tokens": (156892,)},
        _MASK,
        signs=(
            ("num_experts", None),
            ("architectures", ["LLaDAMoEModelLM"]),
            ("architectures", ["LLaDAMoEModel"]),
        ),
    ),
    Entry(
        "llada2_moe",
        "llada2_moe",
        {"attention": "block", "mask_id": 156895, "block_length": 32, "end_tokens": (156892,)},
        _MASK | {"block_length": ("block_size", "block_length")},
    ),
    Entry(
        "sdar_moe",
        "sdar_moe",
        {"attention": "block", "mask_id": 151669, "block_length": 4, "end_tokens": _QWEN_ENDS},
        _MASK | {"block_length": ("block_size", "block_length")},
    ),
    Entry(
        "llada",
        "llada",
        {"attention": "full", "mask_id": 126336, "end_tokens": (126081, 126348)},  # <|endoftext|>, <|eot_id|>
        _MASK,
    ),
    Entry(
        "Dream-Reasoner",
        "Dream",
        {"mask_id": 151669, "end_tokens": _QWEN_ENDS},
        _MASK | {"block_length": ("block_size",)},
        signs=(("mask_token_id", 151669), ("block_size", None)),
    ),
    Entry(
        "Dream",
        "Dream",
        {"attention": "full", "logits_shift": True, "mask_id": 151666, "end_tokens": _QWEN_ENDS},
        _MASK,
    ),
    Entry(
        "Fast_dLLM_Qwen",
        "Fast_dLLM_Qwen",
        {
            "attention": "block",
            "logits_shift": True,
            "mask_id": 151665,
            "block_length": 32,
            "end_tokens": _QWEN_ENDS,
        },
        _MASK | {"block_length": ("bd_size",)},
    ),
    Entry(
        "sdar",
        "sdar",
        {"attention": "block", "mask_id": 151669, "block_length": 4, "end_tokens": _QWEN_ENDS},
        _MASK | {"block_length": ("block_size", "block_length")},
    ),
    Entry(  # causal unless the card says causal-block: then it has the mask and the blocks that are named here
        "nemotron_labs_diffusion",
        "nemotron_labs_diffusion",
        {"attention": "causal", "mask_id": 100, "block_length": 32},
        _MASK | {"block_length": ("block_size",)},
    ),
    Entry(
        "outpace_masked_llama",
        "outpace_masked_llama",
        {},
        _MASK
        | {
            "attention": ("attention",),
            "logits_shift": ("logits_shift",),
            "noise": ("noise",),
            "block_length": ("block_length",),
        },
    ),
)


def kind_of(config: Config) -> str:
    """Return the name of the family that a config belongs to: a row of the table, else its `model_type`."""
    entry = _find(config)
    return entry.name if entry is not None else str(config.get("model_type") or "")


def read_card(config: Config, overrides: Config | None = None) -> Card:
    """Return the card of a checkpoint.

    Args:
        config: the parsed config.json.
        overrides: card fields that the user knows better, e.g. {"logits_shift": False}. A causal checkpoint may become
            a masked one ({"attention": "full", "mask_id": 5}) and the other way round.

    Raises:
        ConfigError: an override is unknown, of the wrong kind, or contradicts the rest of the card.
        ModelError: the same of what the files say, or noise that is not supported.
    """
    given = dict(overrides or {})
    known = [f.name for f in fields(Card) if f.name != "family"]
    for name in given:
        if name not in known:
            raise ConfigError(f"A card has no field {name!r}.", nearest(name, known, "field"))
    entry, vocab_size = _find(config), _vocab_size(config)
    facts: dict[str, Any] = {} if entry is None else _facts(entry, config)
    facts["end_tokens"] = _end_tokens(config, facts.get("end_tokens", ()), vocab_size)
    facts = _completed(facts, given, entry)
    _check(facts, vocab_size, given)
    return Card(family=kind_of(config), **(facts | {"end_tokens": tuple(facts["end_tokens"])}))


def card_from_text(pairs: Mapping[str, str]) -> dict[str, Any]:
    """Return overrides from words, as a command line gives them: true, false, none, 42, or ids parted by commas.

    Raises:
        ConfigError: a number was wanted and something else given. What a field may hold is for `read_card` to say.
    """
    return {name: _value(name, word.strip()) for name, word in pairs.items()}


def _value(name: str, word: str) -> Any:
    if name in ("attention", "noise"):
        return word.lower()
    if name == "logits_shift":
        return {"true": True, "false": False}.get(word.lower(), word)
    try:
        if name == "end_tokens":
            return tuple(int(part) for part in word.split(",") if part.strip())
        if name == "block_length" or (name == "mask_id" and word.lower() != "none"):
            return int(word)
    except ValueError:
        raise ConfigError(
            f"The card's {name} is {word!r}, which is no number.", f"Write it as in --card {name}=5."
        ) from None
    return None if name == "mask_id" else word


def _find(config: Config) -> Entry | None:
    return next((entry for entry in CARD_TABLE if entry.fits(config)), None)


def _facts(entry: Entry, config: Config) -> dict[str, Any]:
    """Return what the table says, replaced by what the config states."""
    facts: dict[str, Any] = dict(entry.facts)
    for name, keys in entry.keys.items():
        stated = [config[key] for key in keys if config.get(key) is not None]
        if stated:
            facts[name] = stated[0]
    return facts


def _completed(facts: dict[str, Any], given: Config, entry: Entry | None) -> dict[str, Any]:
    """Join the user's word, then fill what follows from the rest; what an override makes meaningless is dropped."""
    made = {**facts, **given}
    if "attention" not in made:
        made["attention"] = "causal" if entry is None else "block" if made.get("block_length") else "full"
    made.setdefault("mask_id", None)
    if "attention" in given and made["attention"] not in _BLOCKS and "block_length" not in given:
        made["block_length"] = 0
    is_both = entry is not None and entry.facts.get("attention") == "causal"
    if is_both and made["attention"] == "causal":  # its mask and blocks are those of its other attention
        made |= {name: given.get(name, empty) for name, empty in (("mask_id", None), ("block_length", 0))}
    if made["attention"] == "causal" and "logits_shift" not in given:
        made["logits_shift"] = False
    made.setdefault("noise", "none" if made["mask_id"] is None else "mask")
    made.setdefault("logits_shift", False)
    made["block_length"] = made.get("block_length", 0)
    return made


def _end_tokens(config: Config, table: tuple[int, ...], vocab_size: int) -> tuple[int, ...]:
    """Return the config's end tokens, then those of the table that its vocabulary holds."""
    own = token_ids(config.get("eos_token_id"), "eos_token_id")
    return tuple(dict.fromkeys((*own, *(token for token in table if token < vocab_size))))


def _vocab_size(config: Config) -> int:
    text = config.get("text_config") or {}
    return int(config.get("embedding_size") or config.get("vocab_size") or text.get("vocab_size") or 0)


# What is refused


def _check(facts: Config, vocab_size: int, given: Config) -> None:
    kind = ConfigError if given else ModelError
    _check_kinds(facts, kind)
    _check_numbers(facts, vocab_size, kind, "end_tokens" in given)
    _check_sense(facts, kind)


def _check_kinds(facts: Config, kind: type[OutpaceError]) -> None:
    if facts["attention"] not in _ATTENTION:
        _refuse(kind, f"The card's attention is {facts['attention']!r}.", f"Use one of {', '.join(_ATTENTION)}.")
    if not isinstance(facts["logits_shift"], bool):
        _refuse(kind, f"The card's logits_shift is {facts['logits_shift']!r}.", "It has to be true or false.")
    if facts["noise"] not in _NOISE:
        _refuse(kind, f"The card's noise is {facts['noise']!r}.", 'Use "mask", or "none" for a causal model.')
    if facts["noise"] == "uniform":
        _refuse(
            kind,
            "The card says that noise is uniform: random tokens in place of masks, which no method here decodes.",
            "Use a masked checkpoint.",
        )


def _check_numbers(facts: Config, vocab_size: int, kind: type[OutpaceError], is_given: bool) -> None:
    """Refuse ids and lengths out of range; end tokens only where the user gave them, since files name idle ones."""
    mask_id, block = facts["mask_id"], facts["block_length"]
    if mask_id is not None and (not _is_number(mask_id) or not 0 <= mask_id < vocab_size):
        _refuse(
            kind,
            f"The card's mask_id is {mask_id!r}, but the vocabulary has {vocab_size} tokens.",
            f"Ids go from 0 to {vocab_size - 1}; a card may say another mask_id.",
        )
    if not _is_number(block) or block < 0:
        _refuse(kind, f"The card's block_length is {block!r}.", "It has to be 1 or more, or 0 for no blocks.")
    ends = facts["end_tokens"]
    if not isinstance(ends, (list, tuple)) or not all(_is_number(token) and token >= 0 for token in ends):
        _refuse(kind, f"The card's end_tokens are {ends!r}.", "Give a list of token ids.")
    if is_given and any(token >= vocab_size for token in ends):
        _refuse(kind, f"The card's end_tokens are {ends!r}.", f"Ids go from 0 to {vocab_size - 1}.")


def _check_sense(facts: Config, kind: type[OutpaceError]) -> None:
    """Refuse fields that contradict each other."""
    attention, mask_id, block = facts["attention"], facts["mask_id"], facts["block_length"]
    if attention == "causal" and mask_id is not None:
        _refuse(
            kind,
            f"The card says causal attention and a mask token ({mask_id}); nothing would ever be seen behind a mask.",
            "Say attention full, block or causal-block, or mask_id none.",
        )
    if attention == "causal" and facts["logits_shift"]:
        _refuse(kind, "The card says causal attention and a shift, which causal models do not have.", "Leave one out.")
    if attention != "causal" and mask_id is None:
        _refuse(kind, f"The card says {attention} attention, but names no mask token.", "Give a mask_id.")
    if (facts["noise"] == "none") != (mask_id is None):
        _refuse(
            kind,
            f"The card says noise {facts['noise']} and mask_id {mask_id}.",
            "Say mask where there is a mask_id.",
        )
    if attention in _BLOCKS and block < 1:
        _refuse(
            kind,
            f"The card says {attention} attention, but block_length is {block}.",
            "Give a block_length of 1 or more.",
        )
    if attention not in _BLOCKS and block:
        _refuse(
            kind, f"The card says {attention} attention and blocks of {block}.", "Say attention block, or leave it out."
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _refuse(kind: type[OutpaceError], message: str, hint: str) -> NoReturn:
    raise kind(message, hint)
