"""Compiled CPU kernels: a whole decoder forward in one C call, built on first use where a compiler is found."""

from outpace.kernels import lattice
from outpace.kernels.decoder import CompiledDecoder, compile_decoder, new_packer, supports
from outpace.kernels.library import load as load_library
from outpace.kernels.library import note, read_bandwidth, warnings
from outpace.kernels.shelf import open_shelf

__all__ = [
    "CompiledDecoder",
    "compile_decoder",
    "lattice",
    "load_library",
    "new_packer",
    "note",
    "open_shelf",
    "read_bandwidth",
    "supports",
    "warnings",
]
