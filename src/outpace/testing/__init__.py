"""Public: toy models, the executable contract, exact enumeration, exactness checks, deliberate faults."""

from outpace.testing.toy import ToyModel

__all__ = ["ToyModel"]
