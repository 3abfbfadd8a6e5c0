"""Training of one-pass networks: what is shown, what is asked for, and what the texts are."""
