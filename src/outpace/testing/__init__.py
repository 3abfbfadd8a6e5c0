"""Public: toy models, the executable contract, exact enumeration, exactness checks, deliberate faults."""

from outpace.testing.adapters import check_adapter
from outpace.testing.checks import check_method, contract_checks, run_contract
from outpace.testing.toy import ToyModel

__all__ = ["ToyModel", "check_adapter", "check_method", "contract_checks", "run_contract"]
