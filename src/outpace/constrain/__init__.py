"""What a text must look like: regular expressions, JSON schemas and context-free grammars, as masks over tokens.

A constraint is a processor of the sampler: a function of the tokens written so far, which every method obeys without
knowing of it. Prompts do not count. Anything with the two protocols of `outpace.constrain.protocol` will do; the
ones made here read text through the library llguidance.
"""

from outpace.constrain.guidance import Compiler, check, compile
from outpace.constrain.protocol import Constraint, ConstraintState
from outpace.constrain.reading import Asked
from outpace.constrain.vocabulary import token_bytes

__all__ = ["Asked", "Compiler", "Constraint", "ConstraintState", "check", "compile", "token_bytes"]
