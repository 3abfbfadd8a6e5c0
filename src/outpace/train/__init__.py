"""Training the models of the zoo: recipes, data, the loop, and measuring what came out."""

from __future__ import annotations

from .recipes import RECIPES, TRANSLATIONS, Recipe, TranslationRecipe
from .trainer import train

__all__ = ["RECIPES", "TRANSLATIONS", "Recipe", "TranslationRecipe", "train"]
