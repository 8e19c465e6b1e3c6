"""Distances between sets of images: Fréchet distances in the features of Inception-v3 (FID) or of another network."""

INCEPTION = "inception-v3-compat"  # torch-fidelity's name
CLASSIFIER = "digits-classifier"  # trained on the dataset itself
EXTRACTORS = (INCEPTION, CLASSIFIER)
