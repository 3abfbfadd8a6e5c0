"""Multi-token modules that lie in a target's own files, in the layouts of the families that ship them.

    layout      tensors                                                      what is projected   first embedding
    nextn       model.layers.{L+k}.{enorm,hnorm,eh_proj,shared_head.norm}     [e; h]              zero
                (DeepSeek, GLM; MiMo-V2, Bailing and others: final_layernorm)
    mtp         mtp.{fc,pre_fc_norm_embedding,pre_fc_norm_hidden,norm}        [e; h]              as it is
                (Qwen, whose norms are zero-centred, and EXAONE)
    mimo        model.mtp_layers.{k}.{input_proj,token_layernorm,             [h; e]              zero
                hidden_layernorm,final_layernorm}
    generic     layers.{k}.{enorm,hnorm,eh_proj,mtp_block.*,post_norm}        as the config says  as it is
                (transformers)

Norms and layers are those of the target's family, so that zero-centred norms need no mark. A module's embedding and
output matrix are kept only where they differ from the target's.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from outpace.errors import CapabilityError, ModelError
from outpace.heads.draft import HeadDrafter
from outpace.heads.model import HeadModel
from outpace.heads.modules import Map, Module, ModuleDrafter, Modules
from outpace.heads.mtp import one_layer
from outpace.heads.net import Batch, HeadConfig, HeadNet, Lesson
from outpace.models.assemble import assemble_layer
from outpace.models.layers import rms_norm
from outpace.models.loading import open_tensors, read_config
from outpace.models.lookup import find_family, make_spec
from outpace.models.tensors import TensorFiles, find_tensor_files, one_thread
from outpace.models.transformer import Transformer
from outpace.types import Adapter, Context

__all__ = ["Layout", "find_layout", "has_modules", "open_stored"]


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the modules of a checkpoint lie; `{}` in a name stands for the module's number.

    Attributes:
        block: prefix of the layer's tensors.
        token_norm, hidden_norm, project, norm: names without ".weight".
        rest: prefix of what is the module's and not the layer's.
        hidden_first, zero_first: as of `Modules`.
        start: number of the first module in names.
        count: how many there are.
    """

    block: str
    token_norm: str
    hidden_norm: str
    project: str
    norm: str
    hidden_first: bool = False
    zero_first: bool = False
    start: int = 0
    count: int = 0

    def at(self, name: str, module: int) -> str:
        """Return a name with a module's number in it."""
        return name.format(self.start + module)


def _at(home: str, parts: str, block: str = "", **conventions: bool) -> Layout:
    """Return a layout whose four parts, in the order of `Layout`, lie under a prefix."""
    token_norm, hidden_norm, project, norm = (home + part for part in parts.split())
    return Layout(block or home, token_norm, hidden_norm, project, norm, **conventions)


_HOMES = ("model.layers.{}.", "model.mtp.layers.{}.", "mtp.layers.{}.")
_NORMS = ("shared_head.norm", "final_layernorm", "post_norm")
_FC = "pre_fc_norm_embedding pre_fc_norm_hidden fc norm"
_MIMO = "token_layernorm hidden_layernorm input_proj final_layernorm"
_LAYOUTS = (
    *(_at(home, "enorm hnorm eh_proj post_norm", home + "mtp_block.") for home in ("layers.{}.", *_HOMES)),
    *(_at(home, f"enorm hnorm eh_proj {norm}", zero_first=True) for home in _HOMES for norm in _NORMS),
    _at("mtp.", _FC, "mtp.layers.{}."),
    _at("model.mtp_layers.{}.", _MIMO, hidden_first=True, zero_first=True),
)


def find_layout(names: Iterable[str], config: Mapping[str, Any]) -> Layout | None:
    """Return where a checkpoint's modules lie; None = it holds none."""
    known, text = set(names), config.get("text_config") or config
    trunk = int(text.get("num_hidden_layers") or 0)
    for layout in _LAYOUTS:
        start = trunk if layout.block.startswith("model.layers.") else 0
        found = replace(
            layout, start=start, hidden_first=layout.hidden_first or bool(text.get("mtp_hidden_states_first"))
        )
        parts = (found.token_norm, found.hidden_norm, found.project, found.norm)
        count = 0
        while all(found.at(part, count) + ".weight" in known for part in parts) and any(
            name.startswith(found.at(found.block, count)) for name in known
        ):
            count += 1
        if count:
            return replace(found, count=count)
    return None


def has_modules(directory: Path) -> bool:
    """Return whether the files of a model hold multi-token modules."""
    try:
        return find_layout(_plain(directory).entries, read_config(directory)) is not None
    except ModelError:  # a GGUF file, or weights that only transformers opens
        return False


class StoredModules(HeadNet):
    """Modules read from a target's files: they draft, and are not trained here.

    Args:
        config: of the kind "mtp".
        modules: what was read.
    """

    def __init__(self, config: HeadConfig, modules: Modules) -> None:
        super().__init__(config)
        self.modules_read = modules

    def modules_for(self, model: HeadModel) -> Modules:
        """Return them."""
        del model
        return self.modules_read

    def new_drafter(self, model: HeadModel, context: Context) -> HeadDrafter:
        """Return a drafter that runs the modules one after the other."""
        return ModuleDrafter.begin_with(model, context)

    def loss(self, batch: Batch) -> Lesson:
        """Refuse: modules of any family's layers draft here, and are trained with their model."""
        raise CapabilityError("The modules of a model's own files are not trained here.", "Train the kind 'fastmtp'.")


def open_stored(directory: Path, target: Adapter) -> HeadModel:
    """Return the multi-token modules in the files of a target, beside it.

    Raises:
        ModelError: there are none, or tensors are missing, of other shapes, or of no use.
        CapabilityError: the target does not give hidden states.
    """
    config = read_config(directory)
    files = open_tensors(directory) if isinstance(target, Transformer) else _plain(directory)
    layout = find_layout(files.entries, config)
    if layout is None:
        raise ModelError(
            f"The files in {directory} hold no multi-token modules.", "Name a drafter with -o draft=DIRECTORY."
        )
    reader = _Reader(files, layout, config, target)
    with torch.no_grad(), one_thread():
        parts = tuple(reader.module(k) for k in range(layout.count))
    reader.check_used()
    offered = target.capabilities
    made = HeadConfig(
        kind="mtp",
        hidden_size=reader.width,
        vocab_size=offered.vocab_size,
        num_layers=offered.num_layers,
        depth=layout.count,
    )
    return HeadModel(StoredModules(made, Modules(parts, layout.hidden_first, layout.zero_first)), target)


def _plain(directory: Path) -> TensorFiles:
    if directory.is_file():
        raise ModelError(f"{directory} is a GGUF file; no modules are read from it.", "Use the safetensors files.")
    return TensorFiles(find_tensor_files(directory))


class _Reader:
    """Reads modules one by one, with the layers of the target's family."""

    def __init__(self, files: TensorFiles, layout: Layout, config: Mapping[str, Any], target: Adapter) -> None:
        self.files, self.layout, self.config, self.target = files, layout, config, target
        probe = torch.zeros(1, 1, dtype=torch.int64, device=target.device)
        self.width = target.embed(probe).shape[-1]

    def module(self, k: int) -> Module:
        """Return a module."""
        at, width = self.layout, self.width
        project = self._read(at.at(at.project, k) + ".weight", width, 2 * width)
        norm = at.at(at.norm, k) + ".weight"
        if isinstance(self.target, Transformer):
            body: Adapter = self._native(self.target, k, norm)
        else:
            body = self._foreign(k, norm)
        return Module(
            self._norm(at.at(at.token_norm, k)),
            self._norm(at.at(at.hidden_norm, k)),
            lambda x: F.linear(x, project),
            body,
            self._own_embed(k),
            self._own_head(k),
        )

    def check_used(self) -> None:
        """Refuse modules with tensors that nothing reads.

        Raises:
            ModelError: there is one.
        """
        homes = [self.layout.at(self.layout.block, k) for k in range(self.layout.count)]
        for name in self.files.unused():
            if any(name.startswith(home) for home in homes) and not name.endswith("rotary_emb.inv_freq"):
                raise ModelError(
                    f"Tensor {name} has no place in a multi-token module.", "Its layout is not known here."
                )

    def _native(self, target: Transformer, k: int, norm: str) -> Transformer:
        """Return the layer as a native decoder; it is as the target's last."""
        spec = make_spec(self.config, target.spec.max_positions)
        one = replace(
            spec,
            num_layers=1,
            vocab_size=1,
            windows=spec.windows[-1:],
            rope_index=spec.rope_index[-1:],
            tie_embeddings=False,
            final_softcap=0.0,
            head_bias=False,
        )
        prefix = self.layout.at(self.layout.block, k)
        layer = assemble_layer(self.files, one, find_family(self.config), prefix, target.dtype, target.device)
        return one_layer(one, layer, self._scale(norm))

    def _foreign(self, k: int, norm: str) -> Adapter:
        from outpace.models.hf_layer import foreign_layer

        at = self.layout
        prefix, parts = at.at(at.block, k), (at.token_norm, at.hidden_norm, at.project, at.norm)
        apart = {at.at(part, k) + ".weight" for part in parts} | set(self._shared(k))
        own = [name for name in self.files.entries if name.startswith(prefix) and name not in apart]
        tensors = {name.removeprefix(prefix): self._read(name) for name in own if "rotary_emb" not in name}
        return foreign_layer(self.target, tensors, self._read(norm, self.width))  # type: ignore[arg-type]

    def _norm(self, name: str) -> Map:
        """Return a norm as the target's own are."""
        if isinstance(self.target, Transformer):
            scale, eps = self._scale(name + ".weight"), self.target.spec.norm_eps
            return lambda x: rms_norm(x, scale, eps)
        norm: Any = copy.deepcopy(self.target.model.get_decoder().norm)  # type: ignore[attr-defined]
        norm.weight.data.copy_(self._read(name + ".weight", self.width))
        return norm  # type: ignore[no-any-return]

    def _scale(self, name: str) -> Tensor:
        scale, offset = self._read(name, self.width), self.target.spec.norm_offset  # type: ignore[attr-defined]
        return scale.to(torch.promote_types(scale.dtype, torch.float32)) + offset if offset else scale

    def _read(self, name: str, *shape: int) -> Tensor:
        found = self.files.read(name, shape or self.files.entries[name].shape)
        return found.to(self.target.device, self.target.dtype)

    # Embeddings and output matrices of their own

    def _shared(self, k: int) -> list[str]:
        home = self.layout.at(self.layout.block, k).removesuffix("mtp_block.")
        return [home + name for name in ("embed_tokens.weight", "shared_head.head.weight")]

    def _own(self, name: str, *endings: str) -> Tensor | None:
        """Return a matrix that differs from the target's, which is stored under one of some endings."""
        if name not in self.files:
            return None
        own = self._read(name)
        homes = [self.layout.at(self.layout.block, k) for k in range(self.layout.count)]
        for other in self.files.entries:
            if other.endswith(endings) and not any(other.startswith(home) for home in homes):
                return None if torch.equal(own, self._read(other)) else own
        return own

    def _own_embed(self, k: int) -> Map | None:
        table = self._own(self._shared(k)[0], "embed_tokens.weight")
        return None if table is None else lambda tokens: F.embedding(tokens, table)

    def _own_head(self, k: int) -> Map | None:
        has_head = any(name.endswith("lm_head.weight") for name in self.files.entries)
        table = self._own(self._shared(k)[1], "lm_head.weight" if has_head else "embed_tokens.weight")
        return None if table is None else lambda states: F.linear(states, table)
