"""The recipes of the zoo, of the networks for research, and of whatever `outpace train NAME` makes."""

from .any_order import ORDERS, OrderRecipe
from .completions import COMPLETIONS
from .continuous import CONTINUOUS
from .diffusion import ADAPTED, FEWER
from .distilled import DISTILLED
from .energy import ENERGIES, EnergyRecipe
from .flow import FLOWS, FlowRecipe
from .joint import JOINTS, JointRecipe
from .one_pass import ONE_PASS
from .pairs import PAIRS
from .planning import PUZZLED
from .record import AnyRecipe, Objective, Recipe, TranslationRecipe
from .recurrent import RECURRENT, RecurrentRecipe
from .stories import PAPERS
from .stories import RECIPES as _LLAMAS

TRANSLATIONS: dict[str, TranslationRecipe] = {
    recipe.name: recipe for recipe in (*PAIRS, *ONE_PASS, *DISTILLED, *COMPLETIONS, *CONTINUOUS)
}
RECIPES: dict[str, Recipe] = {**_LLAMAS, **FEWER, **ADAPTED, **PUZZLED}

__all__ = [
    "ENERGIES",
    "FLOWS",
    "JOINTS",
    "ORDERS",
    "PAPERS",
    "RECIPES",
    "RECURRENT",
    "TRANSLATIONS",
    "AnyRecipe",
    "EnergyRecipe",
    "FlowRecipe",
    "JointRecipe",
    "Objective",
    "OrderRecipe",
    "Recipe",
    "RecurrentRecipe",
    "TranslationRecipe",
]
