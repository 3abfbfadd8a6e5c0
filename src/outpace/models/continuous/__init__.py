"""Continuous diffusion of text: a process, a schedule, a denoiser and a solver."""
