"""Writing on a canvas: rows of masks, the rules that unmask them, block schedules and cache policies.

Everything that masked and block diffusion share. A method of `outpace.methods` joins one rule, one schedule and one
policy (`Parts`); the loop knows none of them.
"""

from outpace.canvas.advance import Advance, advance
from outpace.canvas.blocks import FixedBlocks, Schedule
from outpace.canvas.copies import Copy
from outpace.canvas.obey import begin_constraint
from outpace.canvas.parts import Parts
from outpace.canvas.policies import CACHES, POLICIES, Policy, make_policy
from outpace.canvas.reading import Reading, read
from outpace.canvas.row import Canvas, CanvasRow
from outpace.canvas.rules import ORDERS, Choice, Ranked, Rule, surest

__all__ = [
    "CACHES",
    "ORDERS",
    "POLICIES",
    "Advance",
    "Canvas",
    "CanvasRow",
    "Choice",
    "Copy",
    "FixedBlocks",
    "Parts",
    "Policy",
    "Ranked",
    "Reading",
    "Rule",
    "Schedule",
    "advance",
    "begin_constraint",
    "make_policy",
    "read",
    "surest",
]
