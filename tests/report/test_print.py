"""Tables and figures as they are printed: what wins is named, and the images of a sheet are of every class alike."""

import shutil

import numpy as np
import pytest
import torch
from test_report import FD, images, markdown_rows, measure, over_steps, table_of
from test_report import digits as digits
from test_report import places as places
from test_report import whole as whole

from edm.chain import paths as chain
from edm.chain.jobs import Chain
from edm.data.archive import read_archive
from edm.files.tensors import save_tensors
from edm.report.captions import Captions
from edm.report.figures import write_figure
from edm.report.sheet import by_class
from edm.report.writers import as_markdown


def test_sheets_show_as_many_of_every_class_in_order(digits, places, digits_archive, monkeypatch):
    """By the labels that are in the files; a class that was not drawn often enough leaves a white place."""
    told = []
    monkeypatch.setattr("edm.report.panels.sheets", lambda rows, *args, **how: told.append((rows, how)))
    places.data.mkdir()
    shutil.copy(digits_archive, places.data / "digits.zip")
    drawn = {"vp-A": images(1, count=40), "vp-B": images(2, count=40)}
    labels = torch.tensor([*range(9), *range(8, -1, -1), 9, *[0] * 21])  # a single 9
    for model, pixels in drawn.items():
        path = places.run_file(chain.sheet_file(digits.experiments[""], model, "samples"))
        save_tensors(path, {"images/only": pixels, "seeds": torch.arange(40), "labels": labels},
                     {"format": "edm-samples/1"})  # fmt: skip
    write_figure(digits, "figure9", places)
    ((rows, how),) = told
    cells = {label: sheet for row in rows.values() for label, sheet in row.items()}
    assert set(how["columns"].values()) == {10} and all(len(row) <= 2 for row in rows.values())
    for label, model in (("A: baseline", "vp-A"), ("B: + adjusted hyperparameters", "vp-B")):
        first, second = [*range(9), 18], [17 - digit for digit in range(9)]
        assert (cells[label][:19] == drawn[model].numpy()[[*first, *second]]).all()
        assert (cells[label][19] == 255).all() and len(cells[label]) == 20
    archive = read_archive(places.data / "digits.zip")
    for place, pixels in enumerate(cells["digits"]):
        of_class = [image for image, label in zip(archive.images, archive.labels, strict=True) if label == place % 10]
        assert (pixels == of_class[place // 10]).all()
    assert cells["C: + redistributed capacity"] is None


@pytest.mark.parametrize(
    "labels, count, places_of_first, columns",
    [([[1, 0, 1, 0, 1, 0, 0, 1]], 8, [1, 3, 0, 2, 5, 6, 4, 7], 4),  # two columns of each of two classes
     ([[7, 7, 3, 5, 3, 5, 7, 3]], 12, [2, 4, 3, 5, 0, 1, 7, -1, -1, -1, 6, -1], 6),
     ([[0, 1, 2, 3, 4, 5, 6, 7], None], 24, None, 4),  # images without labels are not sorted
     ([list(range(64))], 24, None, 4),  # too many classes
     ([[0] * 30], 24, None, 4), ([], 24, None, 4)],
)  # fmt: skip
def test_images_are_chosen_by_class_where_classes_are_few(labels, count, places_of_first, columns):
    chosen = by_class([None if one is None else np.array(one) for one in labels], count)
    assert chosen is None if places_of_first is None else (chosen[0][0].tolist(), chosen[1]) == (
        places_of_first, columns)  # fmt: skip


def test_the_winning_setting_of_a_sweep_is_named(digits, places):
    experiment = digits.experiments[""]
    measure(places, experiment, "vp-A", "ours", over_steps((8, 2.0), (16, 1.75)), FD)
    measure(places, experiment, "vp-A", "churn-all", {"S_churn=2": [3.0], "S_churn=8": [1.5]}, FD)
    measure(places, experiment, "vp-A", "ladder", {"only": [5.0]}, FD)
    table = table_of(digits, "table4", places)
    assert ("Settings of the lowest distances: Deterministic (Algorithm 1): num_steps=16; "
            "Algorithm 2, all settings: S_churn=8.") in table.notes  # fmt: skip
    assert [row for row, (cell,) in table.rows.items() if cell.best] == ["Algorithm 2, all settings"]
    alone = table_of(digits, "table2", places)  # one measurement of one setting: nothing has won
    assert not any(cell.best for (cell,) in alone.rows.values())
    assert not any("Settings of" in note or "Bold" in note for note in alone.notes)


def test_equal_numbers_are_both_bold(digits, places):
    for model, distance in (("vp-A", 2.0), ("vp-B", 1.751), ("vp-C", 1.749)):
        measure(places, digits.experiments[""], model, "ladder", {"only": [distance]}, FD)
    rows = markdown_rows(as_markdown(table_of(digits, "table2", places)))
    assert [row[1] for row in rows[1:4]] == ["2.00", "**1.75**", "**1.75**"]


def test_captions_say_what_figures_and_their_marks_are(whole):
    captions = Captions(Chain(whole))
    assert captions.title("digits", "figure5a").endswith("5a: Loss per noise level")
    assert "FD vs. NFE (Deterministic samplers of configuration A)" in captions.title("digits", "figure2")
    assert "least NFE within 3 %" in captions.figure("digits", "figure2")
    assert "FID vs. NFE" in captions.title("paper", "figure12b")
    assert "range of its repeats" in captions.figure("paper", "figure12b")
    assert "a column per class" in captions.figure("digits", "figure9")
