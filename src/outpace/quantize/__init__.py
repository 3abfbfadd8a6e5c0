"""Turning a model's matrices into 8 or 4 bits a weight, and writing them in formats that other engines read."""
