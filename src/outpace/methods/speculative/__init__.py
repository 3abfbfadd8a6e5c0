"""Drafts that the target checks."""
