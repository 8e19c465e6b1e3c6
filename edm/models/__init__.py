"""Denoisers D(x; sigma), a network with its preconditioning: build, save, load, compile; the ideal denoiser."""
