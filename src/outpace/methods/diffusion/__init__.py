"""Writing on a canvas."""
