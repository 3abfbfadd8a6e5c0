"""Other engines as servers of one request at a time; see `__main__`.

Runs in the engine's own environment, by a path on PYTHONPATH, so nothing of Outpace is imported here.
"""
