"""The models that a method's settings name beside the target, and their tokenizers: each is loaded once."""

from __future__ import annotations

import functools
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from outpace import kernels
from outpace.api.drafter_check import open_checked
from outpace.errors import ConfigError
from outpace.heads.files import is_head, open_head
from outpace.heads.find import find_head
from outpace.heads.foreign.layouts import is_foreign
from outpace.heads.known import known_heads
from outpace.heads.lowrank import own_masks
from outpace.heads.stored import has_modules, open_stored
from outpace.methods.base import Method
from outpace.methods.misfit import check_partner
from outpace.models.byte_model import ByteNames, byte_tokenizer
from outpace.models.graphs import make_graphs
from outpace.models.loading import resolve
from outpace.models.opening import locate, open_model
from outpace.models.transformer import Transformer
from outpace.text.tokenizer import Tokenizer
from outpace.types import Adapter
from outpace.zoo import drafter_of

if TYPE_CHECKING:
    from outpace.api.engine import LanguageModel

__all__ = ["Partners"]


class Partners:
    """What stands beside a language model's target.

    Args:
        lm: loads them as it was loaded itself, with its dtype, device and kernels.
    """

    def __init__(self, lm: LanguageModel) -> None:
        self._lm = lm
        self._models: dict[str, Adapter] = {}
        self._own: dict[str, Adapter] = {}  # by kind, of the target's own files
        self._tokenizers: dict[str, Tokenizer] = {}
        self._lock = threading.Lock()  # an engine checks several asks at once

    def models(self, method: Method, given: Mapping[str, Adapter]) -> dict[str, Adapter]:
        """Return the models that a method needs by role; those that the caller gives win over those it names.

        Raises:
            ConfigError: a model that is needed has no name.
            CapabilityError: one does not go with the target.
        """
        needs, found = method.needs, {}
        for role in (*needs.models, *needs.optional_models):
            if role in given:
                other = given[role]
            elif role == "draft" and (own := self._own_modules(method)) is not None:
                other = own
            else:
                try:
                    name = self._name(method, role)
                except ConfigError:
                    if role in needs.optional_models:
                        continue
                    raise
                other = self._loaded(name)
            check_partner(
                role,
                other.capabilities,
                self._lm.target.capabilities,
                is_same_vocab=not needs.has_text,
                attention=needs.model_attention.get(role, ""),
            )
            found[role] = other
        return found

    def named(self, name: str) -> Adapter:
        """Return another model by its name, loaded as the language model was."""
        return self._loaded(name)

    def _own_modules(self, method: Method) -> Adapter | None:
        """Return what the target's own files hold for drafting, where the method wants it: modules, or a mask."""
        kind, directory, target = method.needs.head, self._lm.directory, self._lm.target
        if str(getattr(method, "draft", "")) != "auto":
            return None
        with self._lock:
            if kind in self._own:
                return self._own[kind]
            if kind == "mtp" and directory is not None and has_modules(directory):
                self._own[kind] = open_stored(directory, target)
            if kind == "space" and (target.mask_token is not None or target.own_mask is not None):
                self._own[kind] = own_masks(target)
            return self._own.get(kind)

    def _loaded(self, name: str) -> Adapter:
        with self._lock:
            if name not in self._models:
                self._models[name] = self._open(name)
            return self._models[name]

    def _open(self, name: str) -> Adapter:
        if not ByteNames.is_one(name):  # those have no files of their own
            place = resolve(name)
            if is_head(place):
                return open_head(place, self._lm.target)
            if is_foreign(place):
                return open_checked(self._lm, place)
        opened = open_model(name, self._lm.dtype, self._lm.device, kernels if self._lm.is_compiled else None)
        if isinstance(opened, Transformer):
            opened.use_graphs(make_graphs(self._lm.graphs, opened.device))
        return opened

    def tokenizers(self, method: Method, given: Mapping[str, Adapter]) -> dict[str, Tokenizer]:
        """Return the target's tokenizer, and those of a method that works on text, by role.

        Raises:
            ConfigError: such a method meets a model without one.
        """
        own = self._lm.tokenizer
        if not method.needs.has_text:
            return {} if own is None else {"target": own}
        found: dict[str, Tokenizer | None] = {"target": own}
        for role in method.needs.models:
            if role in given:
                found[role] = given[role].tokenizer
            else:
                name = self._name(method, role)
                if ByteNames.is_one(name):
                    self._tokenizers[name] = byte_tokenizer()
                if name not in self._tokenizers:
                    self._tokenizers[name] = Tokenizer.from_directory(locate(name)[0])
                found[role] = self._tokenizers[name]
        for role, tokenizer in found.items():
            if tokenizer is None:
                raise ConfigError(
                    f"The method {method.name!r} works on text, but the {role} model has no tokenizer.",
                    "Use a model with a tokenizer.json.",
                )
        return {role: tokenizer for role, tokenizer in found.items() if tokenizer is not None}

    def _name(self, method: Method, role: str) -> str:
        name = str(getattr(method, role))
        if name != "auto":
            return name
        if role == "judge":
            return str(find_head(self._lm.name, role))
        if role == "draft" and method.needs.head:
            return str(find_head(self._lm.name, method.needs.head, self._heads))
        if role == "draft" and method.needs.takes_heads and self._heads:
            return str(self._heads[0])
        if role == "teacher":
            own = self._lm.name
            raise ConfigError(f"No teacher is known for the model {own!r}.", "Name one with -o teacher=MODEL.")
        return drafter_of(self._lm.name)

    @functools.cached_property
    def _heads(self) -> list[Path]:
        """Trained drafters that are known for the target, the best one first."""
        return known_heads(self._lm.target, self._lm.tokenizer)
