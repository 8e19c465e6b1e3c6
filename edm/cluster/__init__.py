"""Processes, GPUs, signals, Slurm."""
