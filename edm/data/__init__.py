"""Dataset archives and their images, and :mod:`edm.data.prepare`, which converts raw data to archives."""
