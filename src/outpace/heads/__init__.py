"""Trained drafters that read the target's hidden states: their networks, how they draft, and their files."""
