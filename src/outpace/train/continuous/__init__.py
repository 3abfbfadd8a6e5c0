"""What is measured of continuous diffusion models, beside what other models are asked."""
