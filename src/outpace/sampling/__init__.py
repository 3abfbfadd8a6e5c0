"""From logits to a law to a token: the only place that knows temperature, truncation, penalties and noise."""

from outpace.sampling.history import History
from outpace.sampling.noise import Stream, fork_key, gumbel, node_key, place_in_step, row_key, uniform
from outpace.sampling.sampler import Law, Sampler
from outpace.sampling.settings import Sampling

__all__ = [
    "History",
    "Law",
    "Sampler",
    "Sampling",
    "Stream",
    "fork_key",
    "gumbel",
    "node_key",
    "place_in_step",
    "row_key",
    "uniform",
]
