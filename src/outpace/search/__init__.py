"""Searches: they hold rows of a run, fork, score and drop them; one short file each, beside the methods that write."""
