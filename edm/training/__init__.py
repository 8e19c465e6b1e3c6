"""Training: batches, the training step, the loop, training states and log, and the loss per noise level."""
