"""Networks whose decoder sees all places at once; each kind is a way from those places to a text."""
