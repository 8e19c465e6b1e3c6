"""Processes of a run, GPUs, signals, Slurm."""
