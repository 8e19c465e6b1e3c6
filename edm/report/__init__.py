"""Tables and figures, drawn from the results files and from nothing else."""
