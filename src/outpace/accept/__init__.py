"""Which candidates stay: pure functions of a proposal and the target's scores."""

from outpace.accept.match import sample_and_match
from outpace.accept.rejection import rejection

__all__ = ["rejection", "sample_and_match"]
