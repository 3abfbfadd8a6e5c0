"""What a caller may ask for: the arguments of `generate` by name, sorted into a request and the sampling settings."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, TypedDict

from outpace.arguments import ids, refused, settle, some_ids
from outpace.errors import ConfigError, check_characters, nearest
from outpace.sampling.settings import Sampling, SamplingOptions
from outpace.setting import Option, check, setting

if TYPE_CHECKING:
    from outpace.api.recall import Recall
    from outpace.laws.base import Control
    from outpace.methods.base import Method
    from outpace.run.row import Row
    from outpace.search.base import Search
    from outpace.types import Adapter, Outcome

__all__ = ["CallOptions", "Options", "Request", "RequestOptions", "split"]

_MOST_SAMPLES = 100_000  # all of a call's rows stand in memory side by side
_RECORDS = ("log_probs", "margins")
_CONSTRAINTS = ("regex", "json_schema", "grammar")


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What to write, beyond the prompt and the sampling settings.

    Attributes:
        method: a name, or a method object. Calls that name none get what the model's files ask for, else what its kind
            is decoded with (`outpace.methods.misfit.usual_method`).
        options: the method's settings, when it is given by name; first those of a search that is given by name.
        search: a search that holds several texts and returns the best: a name, or an object; None = none.
        max_tokens: most tokens to write per prompt.
        seed: with the sample number, fixes every random draw.
        num_samples: texts per prompt, numbered from 0.
        stop: strings that end the text; nothing is emitted past one. The text of a special token stops there too.
        stop_tokens: ids that end the text like a stop string; the one written is the last of the tokens.
        keep_special: special tokens show in the text, the end token apart.
        ignore_eos: write on past end tokens (under a constraint: until nothing may follow).
        regex: a regular expression that the whole text matches. This, json_schema and grammar need llguidance.
        json_schema: a JSON schema, as a mapping or as JSON, that the text fulfils.
        grammar: a context-free grammar of the text, in Lark's syntax.
        law: laws over the next token, as "NAME:key=value,..." or as objects of `outpace.laws`, one behind the other.
        record: "log_probs", "margins": noted per token (margins cost a sort each).
        top_log_probs: how many of the likeliest tokens to note per token, with their log-probabilities under the model.
        models: other models by role, e.g. {"draft": adapter}; else the method's settings name them.
        memory: what outlives the call, for methods that keep one.
        is_batch_invariant: the text may not depend, by rounding, on window or drafts (slower on the eager path).
        watch: called after every step with the rows that took part and its `Outcome`; it may only read.
        canvas: what follows the prompt, for masked models: given tokens, -1 where one is to be filled in; it takes the
            place of max_tokens. `LanguageModel.infill` makes it from text.
        max_length: most tokens of prompt and text together (of the decoder's, with an encoder), where a prompt is
            shorter than that; 0 = only max_tokens counts, which wins where both are given.
        prefix: what an encoder-decoder's decoder starts with, behind its start token: text or ids, e.g. the token of a
            language. It is no part of the result.
        is_healed: the tokens at the prompt's end that more text might have changed are drawn anew, so that a prompt may
            end inside a word or a token; see `outpace.api.healing`.
        sampling: "model" = temperature and cuts as the model's files ask, where none is given; "plain" = as given.

    Raises:
        ConfigError: a number is too small, a stop string is empty, `record` names something else, or a constraint
            cannot be read.
    """

    method: str | Method = "autoregressive"
    options: Mapping[str, Any] | None = None
    search: str | Search | None = None
    max_tokens: int = setting(128, least=1, option=Option("Most tokens to write; 128 unless the model's files say."))
    seed: int = setting(0, option=Option("Fixes every random draw.", is_shown=True))
    num_samples: int = setting(1, least=1, option=Option("Texts to write from the prompt.", is_shown=True))
    stop: Sequence[str] = setting((), option=Option("End before this text (repeatable).", metavar="TEXT"))
    stop_tokens: Sequence[int] = setting(
        (), option=Option("End at this token (repeatable).", "--stop-token", metavar="ID")
    )
    ignore_eos: bool = setting(False, option=Option("Write on past end tokens."))
    prefix: str | Sequence[int] = setting((), option=Option("What an encoder-decoder's text begins with."))
    is_batch_invariant: bool = setting(
        False, option=Option("Same text, bit for bit, whatever is drafted.", "--batch-invariant")
    )
    is_healed: bool = setting(False, option=Option("Go on from inside a token without bias.", "--healed"))
    keep_special: bool = setting(False, option=Option("Show special tokens in the text."))
    top_log_probs: int = setting(
        0,
        least=0,
        option=Option("With --json: the K likeliest tokens at each place, before the law.", metavar="K", is_shown=True),
    )
    sampling: str = setting(
        "plain",
        among=("plain", "model"),
        note="'model' draws as its own files ask",
        option=Option("model: draw as its own files ask.", metavar="plain|model", is_shown=True),
    )
    regex: str | None = setting(None, option=Option("The whole text matches it.", metavar="PATTERN"))
    json_schema: str | Mapping[str, Any] | None = setting(
        None, option=Option("The text fulfils it.", metavar="FILE|JSON")
    )
    grammar: str | None = setting(None, option=Option("The text obeys this Lark grammar.", metavar="FILE"))
    law: Sequence[str | Control] = setting(
        (), option=Option("A law over the next token (repeatable).", metavar="NAME:KEY=VALUE,...")
    )
    record: Sequence[str] = ()
    models: Mapping[str, Adapter] | None = None
    memory: Any = None
    watch: Callable[[Sequence[Row], Outcome], None] | None = None
    canvas: Sequence[int] = ()
    max_length: int = setting(0, least=0, note="0 = off")

    def __post_init__(self) -> None:
        settle(self)
        self._read_kinds()
        check(self)
        if self.num_samples > _MOST_SAMPLES:
            raise ConfigError("num_samples is too large.", f"num_samples must be at most {_MOST_SAMPLES}.")
        for name in self.record:
            if name not in _RECORDS:
                raise ConfigError(f"record has no {name!r}.", nearest(name, _RECORDS, "record"))
        if any(not text for text in self.stop):
            raise ConfigError("A stop string is empty.", "Give each stop string at least one character.")
        for text in self.stop:
            check_characters(text, "A stop string")
        if self.constraints:
            from outpace import constrain  # not before: the command line reads these settings without torch

            constrain.check(**self.constraints)

    def _read_kinds(self) -> None:
        """Refuse what is of no use as text, list or mapping; a language model among `models` stands for its adapter."""
        if not isinstance(self.method, str):
            from outpace.methods.base import Method

            _expect("method", self.method, Method, "a name or a method object")
        if not isinstance(self.search, (str, type(None))):
            from outpace.search.base import Search

            _expect("search", self.search, Search, "a name or a search object")
        _expect("options", self.options, (Mapping, type(None)), "a dict from option to value")
        for name in ("stop", "record"):  # a lone string is one string, not its letters
            texts = getattr(self, name)
            texts = (texts,) if isinstance(texts, str) else texts
            is_listed = isinstance(texts, (list, tuple, set, frozenset))
            if not is_listed or not all(isinstance(text, str) for text in texts):
                raise refused(name, texts, "a text or a list of texts")
            object.__setattr__(self, name, texts)
        laws = self.law if isinstance(self.law, list | tuple) else (self.law,)
        if any(not isinstance(law, str) and not hasattr(law, "check_beside") for law in laws):
            raise refused("law", self.law, "the name of a law with its settings, or a list of them")
        object.__setattr__(self, "law", tuple(laws))
        for name in ("regex", "grammar"):
            _expect(name, getattr(self, name), (str, type(None)), "text")
        _expect("json_schema", self.json_schema, (str, Mapping, type(None), bool), "a dict or JSON")
        if self.watch is not None and not callable(self.watch):
            raise refused("watch", self.watch, "a function")
        _expect("models", self.models, (Mapping, type(None)), "a dict from role to model")
        if self.models is not None:
            object.__setattr__(self, "models", {role: _adapter(role, model) for role, model in self.models.items()})
        _expect("sampling", self.sampling, str, "'plain' or 'model'")
        object.__setattr__(self, "canvas", ids("canvas", self.canvas))
        object.__setattr__(self, "stop_tokens", some_ids("stop_tokens", self.stop_tokens))
        if not isinstance(self.prefix, str):
            object.__setattr__(self, "prefix", ids("prefix", self.prefix))

    @property
    def constraints(self) -> dict[str, Any]:
        """The constraint that was asked for, by its name; empty = none."""
        return {name: getattr(self, name) for name in _CONSTRAINTS if getattr(self, name) is not None}

    def room(self, num_prompt: int) -> int:
        """Return how many tokens are wanted behind a prompt."""
        return self.max_length - num_prompt if self.max_length > num_prompt else self.max_tokens


class RequestOptions(TypedDict, total=False):
    """The fields of `Request` as arguments by name, num_samples apart; None = not given. A test holds both together."""

    method: str | Method | None
    options: Mapping[str, Any] | None
    search: str | Search | None
    max_tokens: int | None
    seed: int | None
    stop: str | Sequence[str] | None
    stop_tokens: int | Sequence[int] | None
    ignore_eos: bool | None
    prefix: str | Sequence[int] | None
    is_batch_invariant: bool | None
    is_healed: bool | None
    keep_special: bool | None
    top_log_probs: int | None
    sampling: str | None
    regex: str | None
    json_schema: str | Mapping[str, Any] | None
    grammar: str | None
    law: str | Control | Sequence[str | Control] | None
    record: str | Sequence[str] | None
    models: Mapping[str, Any] | None
    memory: Any
    watch: Callable[[Sequence[Row], Outcome], None] | None
    canvas: Sequence[int] | None
    max_length: int | None


class Options(RequestOptions, SamplingOptions, total=False):
    """The arguments by name of `stream`: see `Request` and `Sampling`."""


class CallOptions(Options, total=False):
    """The arguments by name of `generate`, `chat` and `infill`: more than `Request` and `Sampling` have."""

    on_text: Callable[[int, str], None] | None
    is_cancelled: Callable[[], bool] | None
    recall: Recall | None


def split(arguments: Mapping[str, Any]) -> tuple[Request, Sampling]:
    """Sort arguments by name into the request and the sampling settings.

    Raises:
        ConfigError: an argument that neither has; the hint names the nearest.
    """
    asked, sampled = _names(Request), _names(Sampling)
    for name in arguments:
        if name not in asked | sampled:
            raise ConfigError(f"There is no argument {name!r}.", nearest(name, asked | sampled, "argument"))
    request = Request(**{name: value for name, value in arguments.items() if name in asked})
    return request, Sampling(**{name: value for name, value in arguments.items() if name in sampled})


@functools.cache
def _names(kind: type) -> frozenset[str]:
    return frozenset(field.name for field in fields(kind))


def _expect(name: str, value: Any, kinds: type | tuple[type, ...], wanted: str) -> None:
    if not isinstance(value, kinds):
        raise refused(name, value, wanted)


def _adapter(role: Any, model: Any) -> Adapter:
    """Return an adapter, or that of a language model."""
    from outpace.types import Adapter

    # A trained drafter is an adapter that has a target; a language model has one, and is none.
    found = model if isinstance(model, Adapter) else getattr(model, "target", model)
    if not isinstance(found, Adapter):
        raise refused(f"The model for {role}", model, "a language model or an adapter")
    return found
