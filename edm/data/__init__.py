"""Dataset archives, their pixels, and :mod:`edm.data.prepare`, which makes archives from raw data."""
