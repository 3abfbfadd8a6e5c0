"""Writing on a canvas: rows of masks, the rules that unmask them, block schedules and cache policies.

Everything that masked and block diffusion share. A method of `outpace.methods` joins one rule, one schedule and one
policy; the loop knows none of them.
"""

from outpace.canvas.advance import Advance, advance
from outpace.canvas.blocks import FixedBlocks, Schedule
from outpace.canvas.obey import begin_constraint
from outpace.canvas.policies import POLICIES, Policy, make_policy
from outpace.canvas.reading import Reading, read
from outpace.canvas.row import Canvas, CanvasRow
from outpace.canvas.rules import Choice, Rule, surest
from outpace.canvas.window import Window, lay_window, propose_windows

__all__ = [
    "POLICIES",
    "Advance",
    "Canvas",
    "CanvasRow",
    "Choice",
    "FixedBlocks",
    "Policy",
    "Reading",
    "Rule",
    "Schedule",
    "Window",
    "advance",
    "begin_constraint",
    "lay_window",
    "make_policy",
    "propose_windows",
    "read",
    "surest",
]
