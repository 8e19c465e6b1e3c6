"""Which job makes which file; what is stale; what a target costs."""
