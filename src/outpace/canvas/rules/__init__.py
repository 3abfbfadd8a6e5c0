"""Unmasking rules: which of the undecided places are written now, and which written ones are masked again.

`rule` says what a rule is, `orders` what places are ranked by, `ranked` holds the common rule; every other file holds
the rules of one paper.
"""

from outpace.canvas.rules.orders import ORDERS
from outpace.canvas.rules.ranked import Ranked
from outpace.canvas.rules.rule import Choice, Rule, eligible, surest

__all__ = ["ORDERS", "Choice", "Ranked", "Rule", "eligible", "surest"]
