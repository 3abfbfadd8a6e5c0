"""What a checkpoint's own files ask of the texts that it writes: generation_config.json, key by key.

Every key is obeyed, or named in a note: nothing is dropped without a word. Keys mean what they mean in transformers'
`generate`: with one beam, or, where the file asks for several and the caller names no method and draws nothing, with as
many. An older checkpoint without the file keeps the same keys in its config.json.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from outpace.errors import ConfigError, ModelError
from outpace.text.files import read_object
from outpace.text.gguf_file import Gguf, read_gguf, shortest

__all__ = ["GenerationConfig", "read_generation"]

_FILE = "generation_config.json"
_HINT = "Correct the file, or leave its wishes out: --generation-config none (Python: generation_config='none')."
_SHOWN = 60  # characters of a value that a note shows; longer ones are counted

# Keys that only name tokens, or who wrote the file; end tokens are read in `loading`, the first one by the adapter.
_FACTS = {
    "_commit_hash",
    "_from_model_config",
    "bos_token_id",
    "decoder_start_token_id",
    "eos_token_id",
    "pad_token_id",
    "transformers_version",
}
# Values at which a key asks for nothing, besides null; known keys that are not here ask by any other value.
_NEUTRAL: dict[str, Any] = {
    "assistant_confidence_threshold": 0.4,
    "assistant_lookbehind": 10,
    "diversity_penalty": 0.0,
    "do_sample": False,
    "early_stopping": False,
    "encoder_no_repeat_ngram_size": 0,
    "encoder_repetition_penalty": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "guidance_scale": 1.0,
    "length_penalty": 1.0,
    "max_length": 20,
    "min_length": 0,
    "min_new_tokens": 0,
    "min_p": 0.0,
    "no_repeat_ngram_size": 0,
    "num_assistant_tokens": 20,
    "num_assistant_tokens_schedule": "constant",
    "num_beam_groups": 1,
    "num_beams": 1,
    "num_return_sequences": 1,
    "repetition_penalty": 1.0,
    "target_lookbehind": 10,
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
    "typical_p": 1.0,
    "use_cache": True,
}
# Keys that cannot change what plain decoding writes: caches, drafts, what is returned beside the tokens.
_IDLE = {
    "assistant_confidence_threshold",
    "assistant_early_exit",
    "assistant_ensemble_weight",
    "assistant_lookbehind",
    "cache_config",
    "cache_implementation",
    "compile_config",
    "continuous_batching_config",
    "disable_compile",
    "is_assistant",
    "low_memory",
    "max_cache_len",
    "max_matching_ngram_size",
    "num_assistant_tokens",
    "num_assistant_tokens_schedule",
    "output_attentions",
    "output_hidden_states",
    "output_logits",
    "output_scores",
    "prefill_chunk_size",
    "prompt_lookup_num_tokens",
    "return_dict_in_generate",
    "return_legacy_cache",
    "speculation_type",
    "target_lookbehind",
    "use_cache",
    "use_mtp",
}
_UNMET = {
    "constraints",
    "dola_layers",
    "epsilon_cutoff",
    "eta_cutoff",
    "force_words_ids",
    "forced_decoder_ids",
    "guidance_scale",
    "max_time",
    "penalty_alpha",
    "remove_invalid_values",
    "token_healing",
    "top_h",
    "watermarking_config",
}
# Keys that have another name here.
_OURS = {
    "bad_words_ids": "bad_words",
    "max_new_tokens": "max_tokens",
    "min_new_tokens": "min_tokens",
    "stop_strings": "stop",
}
_THEIRS = {ours: theirs for theirs, ours in _OURS.items()}
_ON_CANVAS = ("bad_words", "max_length", "max_tokens", "stop", "suppress_tokens")
_NO_LIMIT = 1 << 31


def _count(value: Any) -> int:
    if isinstance(value, bool) or int(value) != value or not 0 <= value < _NO_LIMIT:
        raise ValueError
    return int(value)


def _positive(value: Any) -> int:
    return _count(value) or _refuse()


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError
    return float(value)


def _scale(value: Any) -> float:
    return number if (number := _number(value)) > 0 else _refuse()


def _share(value: Any) -> float:
    return number if (number := _number(value)) >= 0 else _refuse()


def _stopping(value: Any) -> bool | str:
    is_known = isinstance(value, bool) or value == "never"
    found: bool | str = value if is_known else _refuse()
    return found


def _flag(value: Any) -> bool:
    return value if isinstance(value, bool) else _refuse()


def _id(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else _refuse()


def _ids(value: Any) -> tuple[int, ...]:
    return tuple(map(_id, value)) if isinstance(value, list) else (_id(value),)


def _word(value: Any) -> tuple[int, ...]:
    return _ids(value) if isinstance(value, list) and value and min(_ids(value)) >= 0 else _refuse()


def _words(value: Any) -> tuple[tuple[int, ...], ...]:
    return tuple(map(_word, value)) if isinstance(value, list) else _refuse()


def _biases(value: Any) -> dict[tuple[int, ...], float]:
    return {_word(words): _number(bias) for words, bias in value} if isinstance(value, list) else _refuse()


def _strings(value: Any) -> tuple[str, ...]:
    found = [value] if isinstance(value, str) else value
    is_good = isinstance(found, list) and all(isinstance(text, str) and text for text in found)
    return tuple(found) if is_good else _refuse()


def _decay(value: Any) -> tuple[int, float]:
    start, factor = value
    return _count(start), _scale(factor)


def _refuse() -> Any:
    raise ValueError


_Reader = tuple[Callable[[Any], Any], str]
_LAWS: dict[str, _Reader] = {
    "bad_words_ids": (_words, "a list of lists of token ids"),
    "begin_suppress_tokens": (_ids, "a list of token ids"),
    "encoder_no_repeat_ngram_size": (_count, "a whole number of 0 or more"),
    "encoder_repetition_penalty": (_scale, "a number above 0"),
    "exponential_decay_length_penalty": (_decay, "a whole number and a factor above 0"),
    "forced_bos_token_id": (_ids, "a token id"),
    "forced_eos_token_id": (_ids, "a token id, or a list of them"),
    "max_length": (_positive, "a whole number of 1 or more"),
    "max_new_tokens": (_positive, "a whole number of 1 or more"),
    "min_length": (_count, "a whole number of 0 or more"),
    "min_new_tokens": (_count, "a whole number of 0 or more"),
    "no_repeat_ngram_size": (_count, "a whole number of 0 or more"),
    "repetition_penalty": (_scale, "a number above 0"),
    "sequence_bias": (_biases, "a list of pairs of token ids and a number"),
    "stop_strings": (_strings, "a string, or a list of them"),
    "suppress_tokens": (_ids, "a list of token ids"),
}
_SAMPLING: dict[str, _Reader] = {
    "min_p": (_number, "a number from 0 to 1"),
    "temperature": (_number, "a number of 0 or more"),
    "top_k": (_count, "a whole number of 0 or more"),
    "top_p": (_number, "a number from 0 to 1"),
    "typical_p": (_number, "a number from 0 to 1"),
}
# How many texts are searched for, and which of them are best; keys that have another name among a method's options.
_SEARCH: dict[str, _Reader] = {
    "diversity_penalty": (_share, "a number of 0 or more"),
    "early_stopping": (_stopping, 'true, false or "never"'),
    "length_penalty": (_number, "a number"),
    "num_beam_groups": (_positive, "a whole number of 1 or more"),
    "num_beams": (_positive, "a whole number of 1 or more"),
    "num_return_sequences": (_positive, "a whole number of 1 or more"),
    "renormalize_logits": (_flag, "true or false"),
}
_OPTIONS = {
    "diversity_penalty": "diversity",
    "num_beam_groups": "groups",
    "num_beams": "beams",
    "num_return_sequences": "n_best",
    "renormalize_logits": "is_renormalised",
}
_KNOWN = {*_LAWS, *_SAMPLING, *_SEARCH, *_IDLE, *_UNMET, "do_sample"}


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationConfig:
    """What a checkpoint asks for; empty = nothing.

    Attributes:
        file: the file that says so.
        law: what is obeyed, as arguments of `LanguageModel.generate`.
        sampling: the same of drawing tokens, obeyed where a user asks for the model's own sampling.
        is_sampled: the file asks for sampling.
        search: what it asks of a search with several beams, by its own names; empty = it asks for none.
        num_texts: how many texts it asks for.
        unmet: keys that are not obeyed, with their values.
        idle: keys that have no effect on the text here, with their values.
    """

    file: str = _FILE
    law: Mapping[str, Any] = field(default_factory=dict)
    sampling: Mapping[str, Any] = field(default_factory=dict)
    is_sampled: bool = False
    search: Mapping[str, Any] = field(default_factory=dict)
    num_texts: int = 1
    unmet: Mapping[str, Any] = field(default_factory=dict)
    idle: Mapping[str, Any] = field(default_factory=dict)

    @staticmethod
    def read(found: Mapping[str, Any], file: str = _FILE) -> GenerationConfig:
        """Read parsed keys.

        Raises:
            ModelError: a value of the wrong type or out of range; the sentence names its key.
        """
        asked = {key: value for key, value in found.items() if key not in _FACTS and _asks(key, value)}
        is_sampled = _read_one("do_sample", asked.get("do_sample", False), (_flag, "true or false"), file)
        law = {_OURS.get(key, key): _read_one(key, asked[key], _LAWS[key], file) for key in _LAWS if key in asked}
        drawn = {key: _read_one(key, asked[key], _SAMPLING[key], file) for key in _SAMPLING if key in asked}
        for ours, other in (("max_tokens", "max_length"), ("min_tokens", "min_length")):
            if ours in law:  # as in transformers, the number without the prompt wins
                law.pop(other, None)
        search = {key: _read_one(key, asked[key], _SEARCH[key], file) for key in _SEARCH if key in asked}
        num_texts = search.pop("num_return_sequences", 1)
        has_beams = search.get("num_beams", 1) > 1
        idle = {key: value for key, value in asked.items() if key in _IDLE or (key in search and not has_beams)}
        if has_beams:
            _check_search(search, num_texts, file)
        return GenerationConfig(
            file=file,
            law={name: value for name, value in law.items() if value not in ((), {})},
            sampling={"temperature": 1.0, "top_k": 50, **drawn} if is_sampled else {},
            is_sampled=is_sampled,
            search=search if has_beams else {},
            num_texts=num_texts,
            unmet={k: v for k, v in asked.items() if k in _UNMET or k not in _KNOWN},
            idle=idle if is_sampled else {**idle, **drawn},
        )

    def check_vocabulary(self, vocab_size: int) -> None:
        """Check that the ids exist which are forced, biased or part of bad words; to suppress others does no harm.

        Raises:
            ModelError: one does not.
        """
        groups: dict[str, Any] = {
            "bad_words": [token for word in self.law.get("bad_words", ()) for token in word],
            "sequence_bias": [token for word in self.law.get("sequence_bias", ()) for token in word],
            **{name: self.law.get(name, ()) for name in ("forced_bos_token_id", "forced_eos_token_id")},
        }
        for name, tokens in groups.items():
            wrong = next((token for token in tokens if not 0 <= token < vocab_size), None)
            if wrong is not None:
                raise ModelError(
                    f"{self.file}: {_THEIRS.get(name, name)} holds token {wrong}, but the model has {vocab_size}.",
                    _HINT,
                )

    def join(
        self, given: Mapping[str, Any], ends: Sequence[int], *, is_canvas: bool, has_text: bool
    ) -> tuple[dict[str, Any], list[str]]:
        """Return a user's arguments with the checkpoint's wishes where the user has none, and notes on them.

        Args:
            given: arguments of `LanguageModel.generate`; None = not given.
            ends: ids that end a text; as single bad words they are left out.
            is_canvas: the text is written in any order, where no law over what stands before holds.
            has_text: there is a tokenizer for stop strings.
        """
        given = {name: value for name, value in given.items() if value is not None}
        law, missed = dict(self.law), dict(self.unmet)
        wants_model = str(given.get("sampling")) == "model"
        search, told = self._search(given, missed, is_free=not is_canvas)
        for one, other in (("max_tokens", "max_length"), ("min_tokens", "min_length")):
            if one in given or other in given:
                law.pop(one, None), law.pop(other, None)
        for name in [
            name for name in law if (is_canvas and name not in _ON_CANVAS) or (name == "stop" and not has_text)
        ]:
            value = law.pop(name)
            missed[_THEIRS.get(name, name)] = value
        if "bad_words" in law:
            words = tuple(word for word in law.pop("bad_words") if len(word) > 1 or word[0] not in ends)
            if is_canvas:
                alone = tuple(word[0] for word in words if len(word) == 1)
                longer = tuple(word for word in words if len(word) > 1)
                missed |= {"bad_words_ids": longer} if longer else {}
                law["suppress_tokens"] = (*law.get("suppress_tokens", ()), *alone)
            else:
                law["bad_words"] = words
        if wants_model:
            law |= self.sampling
        kept = {name: value for name, value in law.items() if name not in given and value != ()}
        return {**kept, **search, **given}, self._notes({**kept, **told}, missed, given, wants_model)

    def is_searched(self, given: Mapping[str, Any]) -> bool:
        """Return whether a search is made as the file asks: the caller names no method, and wants nothing drawn."""
        if not self.search or any(given.get(name) is not None for name in ("method", "options")):
            return False
        temperature, samples = given.get("temperature", 0), given.get("num_samples", 1)  # not yet held to their types
        is_drawn = self.is_sampled and str(given.get("sampling")) == "model"
        is_plain = all(isinstance(value, int | float) for value in (temperature, samples))
        return is_plain and temperature == 0 and samples == 1 and not is_drawn

    def _search(
        self, given: Mapping[str, Any], missed: dict[str, Any], *, is_free: bool
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the arguments that make the search which the file asks for, and its keys; else note what is missed."""
        asked = {**self.search, **({"num_return_sequences": self.num_texts} if self.num_texts > 1 else {})}
        if is_free and self.is_searched(given):
            groups = self.search.get("num_beam_groups", 1)
            options = {_OPTIONS.get(key, key): value for key, value in asked.items()}
            if groups == 1:
                options.pop("diversity", None)
            return {"method": "beam-search" if groups == 1 else "diverse-beam-search", "options": options}, asked
        is_drawn = self.is_sampled and str(given.get("sampling")) == "model"
        if is_drawn and self.num_texts > 1 and "num_samples" not in given:
            told = {"num_return_sequences": asked.pop("num_return_sequences")}
            missed |= asked
            return {"num_samples": self.num_texts}, told
        missed |= asked
        return {}, {}

    def _notes(
        self, kept: Mapping[str, Any], missed: Mapping[str, Any], given: Mapping[str, Any], wants_model: bool
    ) -> list[str]:
        groups = {
            "obeyed": {_THEIRS.get(name, name): value for name, value in kept.items()},
            "not obeyed": missed,
            "without effect on the text": self.idle,
        }
        told = [f"{what}: {_listed(keys)}" for what, keys in groups.items() if keys]
        notes = [f"{self.file}, {'; '.join(told)}."] if told else []
        if self.is_sampled and not wants_model and "temperature" not in given:
            asked = ", ".join(map(_shown, self.sampling, self.sampling.values()))
            taken = "likeliest texts were searched for" if self.is_searched(given) else "likeliest token was taken"
            notes.append(f"{self.file} asks for sampling ({asked}); the {taken}. --sampling model obeys.")
        if wants_model and not self.is_sampled:
            notes.append("The model's files ask for no sampling: the likeliest token was taken unless you set more.")
        return notes


def read_generation(directory: str | os.PathLike[str], wanted: str = "model") -> GenerationConfig:
    """Return what a model directory's files ask for.

    Args:
        directory: with generation_config.json, or with a config.json that holds such keys.
        wanted: "model", or "none" to ask for nothing.

    Raises:
        ModelError: a file is no JSON object, or a value is of the wrong type or out of range.
        ConfigError: `wanted` is something else.
    """
    if wanted not in ("model", "none"):
        raise ConfigError(f"generation_config is {wanted!r}.", "Use 'model' (as the files say) or 'none'.")
    if wanted == "none":
        return GenerationConfig()
    if Path(directory).is_file():
        return _of_gguf(read_gguf(Path(directory)))
    own, config = Path(directory) / _FILE, Path(directory) / "config.json"
    if own.is_file():
        return GenerationConfig.read(read_object(own))
    found = read_object(config)
    inner: Any = next((found[name] for name in ("decoder", "generator", "text_config") if found.get(name)), {})
    keys = {key: value for key, value in found.items() if key in _KNOWN and value is not None}
    if isinstance(inner, dict):
        keys = {key: value for key, value in inner.items() if key in _KNOWN} | keys
    if found.get("force_bos_token_to_be_generated"):  # how the first BART checkpoints say it
        keys["forced_bos_token_id"] = found.get("bos_token_id")
    return GenerationConfig.read(keys, "config.json")


# What GGUF files say of sampling, by its names here; the rest is named in a note.
_GGUF = {"temp": "temperature", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p"}
_GGUF_PREFIX = "general.sampling."


def _of_gguf(gguf: Gguf) -> GenerationConfig:
    """Return what a GGUF file asks for: only sampling has keys there."""
    stated = {
        key.removeprefix(_GGUF_PREFIX): value for key, value in gguf.metadata.items() if key.startswith(_GGUF_PREFIX)
    }
    found = {_GGUF.get(key, key): shortest(it) if isinstance(it, float) else it for key, it in stated.items()}
    if set(_GGUF.values()) & set(found):
        found = {"do_sample": True, "top_k": 0} | found
    return GenerationConfig.read(found, gguf.path.name)


def _check_search(search: Mapping[str, Any], num_texts: int, file: str) -> None:
    """Raise if what is asked of a search contradicts itself.

    Raises:
        ModelError: more texts than beams, or beams that do not fall into equal groups.
    """
    beams, groups = search["num_beams"], search.get("num_beam_groups", 1)
    if num_texts > beams:
        raise ModelError(f"{file}: num_return_sequences is {num_texts}, but num_beams is {beams}.", _HINT)
    if beams % groups:
        raise ModelError(f"{file}: num_beam_groups is {groups}, which does not divide num_beams, {beams}.", _HINT)


def _asks(key: str, value: Any) -> bool:
    is_flag = key not in _LAWS and key not in _SAMPLING and key not in _NEUTRAL
    return value is not None and not (value is False and is_flag) and not (key in _NEUTRAL and value == _NEUTRAL[key])


def _read_one(key: str, value: Any, reader: _Reader, file: str) -> Any:
    read, what = reader
    try:
        return read(value)
    except (ValueError, TypeError, OverflowError):
        raise ModelError(f"{file}: {key} is {_short(value)}, which is not {what}.", _HINT) from None


def _listed(keys: Mapping[str, Any]) -> str:
    return ", ".join(_shown(key, value) for key, value in keys.items())


def _shown(key: str, value: Any) -> str:
    """Return a key with its value, or with how much there is of it."""
    if isinstance(value, list | tuple | dict) and len(value) > 1:
        return f"{key} ({len(value)})"
    if isinstance(value, tuple) and len(value) == 1:
        value = value[0]
    text = _short(value)
    return key if isinstance(value, dict) else f"{key}={text}"


def _short(value: Any) -> str:
    text = repr(value) if isinstance(value, str) else str(list(value) if isinstance(value, tuple) else value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
