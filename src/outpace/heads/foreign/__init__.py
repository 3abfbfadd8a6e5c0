"""Drafter files of others: which layout it is, reading it into our networks, and writing ours in it.

One file per family of layouts; `source` holds what lies on the disk, `layouts` tells which it is, `opening` binds it to
a target, `export` writes.
"""
