"""Training the models of the zoo: recipes, data, the loop, and measuring what came out."""

from __future__ import annotations

from .recipes import RECIPES, Recipe
from .trainer import train

__all__ = ["RECIPES", "Recipe", "train"]
