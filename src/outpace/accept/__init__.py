"""Which candidates stay: pure functions of a proposal and the target's scores."""

from outpace.accept.block import block_verification
from outpace.accept.match import sample_and_match
from outpace.accept.multi_candidate import multi_candidate
from outpace.accept.rejection import rejection
from outpace.accept.spectr import spectr
from outpace.accept.traversal import traversal_verification
from outpace.accept.typical import typical_acceptance

__all__ = [
    "block_verification",
    "multi_candidate",
    "rejection",
    "sample_and_match",
    "spectr",
    "traversal_verification",
    "typical_acceptance",
]
