"""The jobs of the chain, their files, their staleness and their costs."""
