"""The Python face: load a model, ask it for text."""
