"""Finding, and writing only, what a collection holds: an index of its substrings, and ranked passages."""
