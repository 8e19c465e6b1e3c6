"""Batches, the step, the loop, states and log, the loss per noise level."""
