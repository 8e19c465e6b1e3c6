"""Converts raw datasets to the archive format of :mod:`edm.data.archive`.

=============  =====================================================================
expected.py    the properties of each dataset in the paper, and checks against them
sources.py     the sources, by name
pictures.py    converts images for the archive: crop, resize, channels
splits.py      training and test parts of a source
cifar.py       the CIFAR-10 python tarball
idx.py         the idx files of MNIST
pipeline.py    ``prepare``: writes an archive from a source, on all cores
workers.py     the processes that convert images, in order
=============  =====================================================================

The rules for image and label files (``decoding.py``, ``labels.py``, ``trees.py``) are one folder up, because reading
archives uses them, too.
"""

from edm.data.prepare.expected import PAPER, SOURCES, STATABLE

__all__ = ["PAPER", "SOURCES", "STATABLE", "prepare"]


def __getattr__(name: str):
    if name == "prepare":  # imported when used, so that `edm --help` can name the sources without numpy
        from edm.data.prepare.pipeline import prepare

        return prepare
    raise AttributeError(f"module 'edm.data.prepare' has no attribute {name!r}")
