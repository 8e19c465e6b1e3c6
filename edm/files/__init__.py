"""File operations: atomic writes, hashes, locks, resumable outputs, downloads."""
