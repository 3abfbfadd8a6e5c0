"""A server measured from outside, over HTTP, as its clients see it; see `__main__`."""
