"""Images measured, in one job or in shards; searches and choices; the results file."""
