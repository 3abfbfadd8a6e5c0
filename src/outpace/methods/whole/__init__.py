"""Rules by which a one-pass model's text is chosen or refined, one file each."""
