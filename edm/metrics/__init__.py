"""Distances between sets of images: Fréchet distances in the features of Inception-v3 (FID) or of another network."""
