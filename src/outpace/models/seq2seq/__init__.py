"""Encoder-decoders that run natively: two specs, their weights, and one adapter."""
