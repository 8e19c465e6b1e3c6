"""Algorithms 1 to 3, the samplers they are compared with, images from seeds, sample files."""
