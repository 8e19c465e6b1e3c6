"""Sources of datasets, each turned into the archive format of :mod:`edm.data.archive`.

=============  =====================================================================
expected.py    what the paper used of each source, and the checks against it
sources.py     the sources, by name
pictures.py    images as the archive holds them: crop, resize, channels
cifar.py       the CIFAR-10 python tarball
idx.py         the files of MNIST
pipeline.py    ``prepare``: source in, archive out, on all cores
workers.py     the processes that make the images, in order
=============  =====================================================================

The rules for files of images and labels (``decoding.py``, ``labels.py``, ``trees.py``) lie one folder up, for archives
are read by them, too.
"""

from edm.data.prepare.expected import PAPER, SOURCES, STATABLE

__all__ = ["PAPER", "SOURCES", "STATABLE", "prepare"]


def __getattr__(name: str):
    if name == "prepare":  # imported when used, so that `edm --help` can name the sources without numpy
        from edm.data.prepare.pipeline import prepare

        return prepare
    raise AttributeError(f"module 'edm.data.prepare' has no attribute {name!r}")
