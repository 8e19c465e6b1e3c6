"""Evaluates generated images in one job or in shards, searches sampler settings, selects snapshots, writes results."""
