"""Before Snakemake makes files again: a marker that is newer than all of them, and a place for what is not its own."""

import os
import time
from pathlib import Path

from edm.chain.remaking import new_marker, to_present


def test_the_marker_is_newer_than_all_and_never_the_same_and_no_other_file_changes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("future").touch()
    os.utime("future", (4e9, 4e9))
    texts = set()
    for _ in range(3):
        marker = Path(new_marker(["future", "nowhere"]))
        texts.add(marker.read_text())
        assert marker.stat().st_mtime > Path("future").stat().st_mtime == 4e9
    assert len(texts) == 3


def test_only_what_comes_from_the_future_is_set_to_the_present(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, moment in (("past", 1e9), ("future", 4e9)):
        Path(name).touch()
        os.utime(name, (moment, moment))
    to_present(["past", "future", "nowhere"])
    assert Path("past").stat().st_mtime == 1e9 and abs(Path("future").stat().st_mtime - time.time()) < 60
