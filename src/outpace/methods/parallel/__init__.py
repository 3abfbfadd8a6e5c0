"""Guesses of the target about its own text."""
