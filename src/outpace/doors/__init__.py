"""Doors for other tools: what they call, in their own words, with our engine behind it."""
