"""Constraints on a canvas: texts that are written in any order."""

from outpace.constrain.canvas.compile import CanvasCompiler, compile_canvas
from outpace.constrain.canvas.protocol import CanvasConstraint, CanvasState

__all__ = ["CanvasCompiler", "CanvasConstraint", "CanvasState", "compile_canvas"]
