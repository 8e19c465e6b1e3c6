"""Sources of datasets, each turned into the archive format of :mod:`edm.data`."""

from edm.prepare.sources import SOURCES, prepare

__all__ = ["SOURCES", "prepare"]
