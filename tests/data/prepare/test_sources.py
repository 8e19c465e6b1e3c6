"""Every kind of source becomes the published archive, with the images and labels that it holds."""

import io
import shutil
import struct
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import yaml
from made_up import cifar_members, labels_file, picture, write_folder, write_mnist, write_tarball, write_zip
from PIL import ExifTags, Image, ImageCms, PngImagePlugin

from edm import registry
from edm.cli import main
from edm.data.archive import read_archive, write_archive
from edm.data.prepare import PAPER, SOURCES, pipeline, prepare
from edm.data.prepare.pictures import Images
from edm.data.zip_writer import ArchiveWriter


def archive_of(tmp_path, source, path, **options):
    prepare(source, tmp_path / "out.zip", path, **options)
    return read_archive(tmp_path / "out.zip")


def opened(data, mode="RGB"):
    return np.asarray(Image.open(io.BytesIO(data)).convert(mode))


# Folders and zips -----------------------------------------------------------------------------------------------------


def test_top_level_folders_are_classes_in_the_order_of_their_names(tmp_path, classes):
    dataset = archive_of(tmp_path, "folder", write_folder(tmp_path / "in", classes))
    assert dataset.labels.tolist() == [0, 0, 0, 1, 1, 1]
    expected = [opened(classes[name]).transpose(2, 0, 1) for name in sorted(classes)]
    assert (dataset.images == np.stack(expected)).all()


@pytest.mark.parametrize("below", ["", "a"])
def test_one_folder_is_one_class_where_one_is_stated(tmp_path, below):
    folder = write_folder(tmp_path / "in", {f"a/{i}.png": picture(i) for i in range(3)})
    assert archive_of(tmp_path, "folder", folder / below, classes=1).labels.tolist() == [0, 0, 0]
    assert archive_of(tmp_path, "folder", folder / below).labels is None


def test_every_layout_of_the_same_images_gives_the_same_bytes(tmp_path, classes):
    """A folder, a zip, a zip with a folder around it, files in another order, two zips, a folder of zips."""
    around = {f"data/train/{name}": content for name, content in classes.items()}
    backwards = dict(reversed(classes.items()))
    halves = [dict(list(classes.items())[:2]), dict(list(classes.items())[2:])]
    zips = tmp_path / "zips"
    zips.mkdir()
    parts = [write_zip(zips / f"{i}.zip", half) for i, half in enumerate(halves)]
    layouts = {
        "folder": write_folder(tmp_path / "in", classes),
        "nested": write_folder(tmp_path / "around", around),
        "zip": write_zip(tmp_path / "a.zip", classes),
        "nested zip": write_zip(tmp_path / "b.zip", around, zipfile.ZIP_STORED),
        "backwards": write_zip(tmp_path / "c.zip", backwards),
        "two zips": parts,
        "folder of zips": zips,
    }
    results = {name: prepare("folder", tmp_path / f"{name}.out.zip", path)["sha256"] for name, path in layouts.items()}
    assert len(set(results.values())) == 1, results


def test_dataset_json_goes_before_folder_names(tmp_path, classes):
    labels = [[name, i] for i, name in enumerate(classes)]
    path = write_zip(tmp_path / "a.zip", classes | {"dataset.json": labels_file(labels)})
    assert archive_of(tmp_path, "zip", path).labels.tolist() == [0, 1, 2, 3, 4, 5]
    path = write_zip(tmp_path / "a.zip", classes | {"dataset.json": labels_file(None)})
    assert archive_of(tmp_path, "zip", path).labels is None


def test_a_zip_from_windows_with_backslashes_is_read_as_with_slashes(tmp_path, classes):
    labels = labels_file([[name, i] for i, name in enumerate(classes)])
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name, content in (classes | {"dataset.json": labels, "cat/": b""}).items():
            info = zipfile.ZipInfo(name.replace("/", "\\"))
            info.create_system = 0
            archive.writestr(info, content)
    slashed = prepare("zip", tmp_path / "o1.zip", write_zip(tmp_path / "b.zip", classes | {"dataset.json": labels}))
    assert prepare("zip", tmp_path / "o2.zip", tmp_path / "a.zip") == slashed
    assert read_archive(tmp_path / "a.zip").labels.tolist() == [0, 1, 2, 3, 4, 5]


def test_our_own_archives_are_a_source(tmp_path, rgb_images):
    write_archive(tmp_path / "a.zip", rgb_images, [1, 0] * 6)
    result = prepare("zip", tmp_path / "b.zip", tmp_path / "a.zip")
    assert (tmp_path / "b.zip").read_bytes() == (tmp_path / "a.zip").read_bytes()
    assert result == {"images": 12, "resolution": 16, "channels": 3, "classes": 2, "empty_classes": [],
                      "sha256": result["sha256"]}  # fmt: skip


def test_without_folders_or_with_no_classes_asked_there_are_no_labels(tmp_path, classes):
    flat = write_folder(tmp_path / "flat", {f"{i}.png": picture(i) for i in range(3)})
    assert archive_of(tmp_path, "folder", flat).labels is None
    assert archive_of(tmp_path, "folder", write_folder(tmp_path / "in", classes), classes=0).labels is None


def test_hidden_files_and_what_systems_leave_behind_are_skipped(tmp_path, classes):
    litter = {".DS_Store": b"x", "cat/.hidden.png": b"x", "__MACOSX/cat/._0.png": b"x", "dog/Thumbs.db": b"x",
              "LICENSE.txt": b"x", "README": b"x", ".git/config": b"x"}  # fmt: skip
    clean = prepare("zip", tmp_path / "o1.zip", write_zip(tmp_path / "a.zip", classes))
    assert clean == prepare("zip", tmp_path / "o2.zip", write_zip(tmp_path / "b.zip", classes | litter))
    assert clean == prepare("folder", tmp_path / "o3.zip", write_folder(tmp_path / "in", classes | litter))


def test_a_class_may_be_named_as_what_is_skipped_among_files(tmp_path):
    """As for the same tree in a zip: only files are skipped by such names, and only folders of the system's."""
    names = ("car", "desktop.ini", "LICENSE", "license", "readme.dir", "Thumbs.db")
    files = {f"{name}/{i}.png": picture(10 * k + i) for k, name in enumerate(names) for i in range(3)}
    litter = {"LICENSE.md": b"x", "car/readme.txt": b"x", "__MACOSX/car/._0.png": b"x"}
    folder = prepare("folder", tmp_path / "a.zip", write_folder(tmp_path / "in", files | litter))
    assert (folder["images"], folder["classes"]) == (18, 6)
    zipped = prepare("zip", tmp_path / "b.zip", write_zip(tmp_path / "in.zip", files | litter))
    assert zipped == folder
    assert read_archive(tmp_path / "a.zip").labels.tolist() == [i for i in range(6) for _ in range(3)]


def test_a_folder_of_zips_is_one_only_without_pictures_in_folders(tmp_path, refused, classes):
    top = write_folder(tmp_path / "in", {"license/0.png": picture(1)})
    write_zip(top / "a.zip", classes)
    refused("a.zip is not an image", "folder", top)


def test_zips_made_on_a_mac_are_one_dataset(tmp_path, classes):
    """Each has a .DS_Store of the same name and __MACOSX/._… beside its pictures."""
    litter = {".DS_Store": b"x", "__MACOSX/._cat": b"x", "__MACOSX/cat/._0.png": b"x", "cat/Icon\r": b""}
    halves = [dict(list(classes.items())[:2]), dict(list(classes.items())[2:])]
    paths = [write_zip(tmp_path / f"{i}.zip", half | litter) for i, half in enumerate(halves)]
    clean = prepare("zip", tmp_path / "o1.zip", write_zip(tmp_path / "a.zip", classes))
    assert clean == prepare("zip", tmp_path / "o2.zip", paths)


@pytest.mark.parametrize("size", [(40, 24), (24, 41), (16, 16), (9, 30)])
def test_the_middle_square_is_resized_by_pillows_lanczos(tmp_path, size):
    """Cropped first: Lanczos must not see what is cut off."""
    data = picture(1, *size, format="JPEG")
    dataset = archive_of(tmp_path, "folder", write_folder(tmp_path / "in", {"a.jpg": data}), resolution=16)
    pixels, side = opened(data), min(size)
    top, left = (size[1] - side) // 2, (size[0] - side) // 2
    square = Image.fromarray(pixels[top : top + side, left : left + side])
    expected = np.asarray(square.resize((16, 16), Image.Resampling.LANCZOS))
    assert (dataset.images[0] == expected.transpose(2, 0, 1)).all()


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "P", "CMYK"])
def test_grey_is_repeated_and_every_8_bit_kind_becomes_rgb(tmp_path, mode):
    data = picture(3, mode=mode, format="JPEG" if mode == "CMYK" else "PNG")
    dataset = archive_of(tmp_path, "folder", write_folder(tmp_path / "in", {"a.png": data}), channels=3)
    grey = mode in ("1", "L")
    expected = opened(data, "L")[:, :, None].repeat(3, 2) if grey else opened(data)
    assert (dataset.images[0] == expected.transpose(2, 0, 1)).all()
    dataset = archive_of(tmp_path, "folder", tmp_path / "in")
    assert dataset.images.shape[1] == (1 if grey else 3)


# The paper's datasets -------------------------------------------------------------------------------------------------


def test_nothing_but_pixels_reaches_the_archive(tmp_path):
    """Profiles, transparency, texts and orientation of files change no byte of an archive with the same pixels."""
    told = PngImagePlugin.PngInfo()
    told.add_text("Comment", "taken by hand")
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 1
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    files = {"plain": {}, "told": {"pnginfo": told, "exif": exif, "icc_profile": profile, "dpi": (72, 72)},
             "a colour that is transparent": {"transparency": (1, 2, 3)}}  # fmt: skip
    written = set()
    for name, extra in files.items():
        (folder := tmp_path / name).mkdir()
        for i in range(3):
            Image.open(io.BytesIO(picture(i))).convert("RGB").save(folder / f"{i}.png", **extra)
        prepare("folder", tmp_path / "out.zip", folder)
        written.add((tmp_path / "out.zip").read_bytes())
        arrays = read_archive(tmp_path / "out.zip").images
        write_archive(tmp_path / "again.zip", arrays, None)
        written.add((tmp_path / "again.zip").read_bytes())
    assert len(written) == 1


def test_the_paper_s_numbers():
    """Section 7 of the specification: counts, sizes and classes are expected without being stated."""
    numbers = {name: (e.images, e.resolution, e.channels, e.classes) for name, e in PAPER.items()}
    assert numbers["cifar10"] == (50_000, 32, 3, 10) and numbers["mnist"] == (60_000, 32, 1, 10)
    assert numbers["ffhq"] == (70_000, 64, 3, 0) and numbers["afhqv2"] == (15_803, 64, 3, 0)
    assert numbers["imagenet"] == (1_281_167, 64, 3, 1000) and PAPER["ffhq"].source_size == 1024
    assert set(PAPER) == set(SOURCES)


def test_cifar10_is_read_from_its_tarball_in_the_order_of_its_batches(tmp_path):
    members, images, labels = cifar_members()
    path = write_tarball(tmp_path / "c.tar.gz", members)
    dataset = archive_of(tmp_path, "cifar10", path, images=20, checksum=False)
    assert (dataset.images == images.reshape(-1, 3, 32, 32)).all() and dataset.labels.tolist() == labels


def python2_batch(images, labels):
    """A batch instruction by instruction as Python 2's cPickle writes it: bytes as BINSTRING, numpy.core."""

    def short(text):
        return b"U" + bytes([len(text)]) + text

    array = b"cnumpy.core.multiarray\n_reconstruct\nq\x01cnumpy\nndarray\nq\x02K\x00\x85" + short(b"b") + b"\x87R"
    dtype = b"cnumpy\ndtype\n" + short(b"u1") + b"K\x00K\x01\x87R(K\x03" + short(b"|") + b"NNNJ\xff\xff\xff\xff" * 1
    dtype += b"J\xff\xff\xff\xffK\x00tb"
    shape = b"M" + struct.pack("<H", len(images)) + b"M\x00\x0c\x86"
    state = b"(K\x01" + shape + dtype + b"\x89T" + struct.pack("<I", images.size) + images.tobytes() + b"tb"
    numbers = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    return b"\x80\x02}q\x00(" + short(b"data") + array + state + short(b"labels") + numbers + b"u."


def test_cifar10_as_python_2_pickled_it(tmp_path):
    members, images, labels = cifar_members()
    names = [name for name, _ in members if "data_batch" in name]
    parts = {name: slice(4 * (int(name[-1]) - 1), 4 * int(name[-1])) for name in names}
    old = [(name, python2_batch(images[part], labels[part])) for name, part in parts.items()]
    dataset = archive_of(tmp_path, "cifar10", write_tarball(tmp_path / "c.tgz", old), images=20, checksum=False)
    assert (dataset.images == images.reshape(-1, 3, 32, 32)).all() and dataset.labels.tolist() == labels


@pytest.mark.parametrize("compress", [False, True])
def test_mnist_is_padded_with_zeros(tmp_path, compress):
    digits = np.random.default_rng(0).integers(1, 256, (20, 28, 28), dtype=np.uint8)
    labels = np.arange(20, dtype=np.uint8) % 10
    folder = write_mnist(tmp_path / "mnist", digits, labels, compress)
    dataset = archive_of(tmp_path, "mnist", folder, images=20)
    assert (dataset.images[:, 0, 2:30, 2:30] == digits).all() and dataset.labels.tolist() == labels.tolist()
    assert dataset.images.astype(int).sum() == digits.astype(int).sum()
    assert archive_of(tmp_path, "mnist", folder, images=20, channels=3).images.shape == (20, 3, 32, 32)


@pytest.mark.parametrize("source, folders", [("ffhq", ("00000", "01000")), ("afhqv2", ("test/cat", "train/dog"))])
def test_the_folders_of_faces_are_not_classes(tmp_path, source, folders):
    files = {f"{folder}/{i}.png": picture(i, 64, 64) for folder in folders for i in range(2)}
    path = write_folder(tmp_path / "in", files)
    dataset = archive_of(tmp_path, source, path, images=4, source_size=64, resolution=32)
    assert dataset.labels is None and dataset.images.shape == (4, 3, 32, 32)


def test_imagenet_is_labelled_by_the_rank_of_its_synsets(tmp_path):
    files = {
        "n02000000/n02000000_1.JPEG": picture(1, 90, 70, format="JPEG"),
        "n01440764/n01440764_9.JPEG": picture(2, 70, 90, "L", "JPEG"),
        "n01440764/n01440764_10.JPEG": picture(3, 80, 80),  # one of ILSVRC's is a PNG under this name, too
        "n15075141/n15075141_3.JPEG": picture(4, 75, 80, "CMYK", "JPEG"),
    }
    path = write_folder(tmp_path / "train", files)
    dataset = archive_of(tmp_path, "imagenet", path, images=4, classes=3)
    assert dataset.labels.tolist() == [0, 0, 1, 2] and dataset.images.shape == (4, 3, 64, 64)
    assert (dataset.images[1, 0] == dataset.images[1, 2]).all(), "grey is repeated"


@pytest.mark.parametrize(
    "source, options, message",
    [
        ("ffhq", {}, "70,000 images expected, as in the paper; 6 images found; state images: 6 in params.yaml"),
        ("afhqv2", {"images": 6}, "0.png is 16x16, 512x512 is expected, as in the paper; state source_size: 16"),
        ("folder", {"images": 7}, "7 images expected, as stated; 6 images found"),
        ("folder", {"classes": 3}, "3 classes expected, as stated; 2 classes found"),
        ("folder", {"channels": 1}, "0.png is in colour, but channels: 1 is asked"),
        ("imagenet", {"images": 6}, "is not in a folder named as a synset"),
    ],
)
def test_what_is_not_as_in_the_paper_or_as_stated_is_an_error_that_says_which(
    tmp_path, classes, refused, source, options, message
):
    refused(message, source, write_folder(tmp_path / "in", classes), **options)


def test_fixed_sources_are_checked_too(tmp_path, refused):
    members, _, _ = cifar_members()
    path = write_tarball(tmp_path / "c.tar.gz", members)
    refused("50,000 images expected, as in the paper; 20 images found", "cifar10", path, checksum=False)
    refused("images of 64x64 expected, as stated; images of 32x32 found", "cifar10", path, checksum=False, images=20,
            resolution=64)  # fmt: skip
    refused("channels is 2; choose 1", "digits", None, channels=2)
    refused("images is 0; expected a whole number from 1", "digits", None, images=0)


# Writing --------------------------------------------------------------------------------------------------------------


def test_the_number_of_workers_changes_nothing(tmp_path, classes):
    path = write_folder(tmp_path / "in", classes)
    assert len({prepare("folder", tmp_path / f"{n}.zip", path, workers=n)["sha256"] for n in (1, 2, 7)}) == 1


def test_memory_is_bounded_however_slow_the_disk(tmp_path, monkeypatch):
    """No image is made that is more than three chunks per worker ahead of the one being written."""
    made, ahead = [], []

    def read(i):
        made.append(i)
        return np.zeros((3, 512, 512), np.uint8)  # one image is a chunk at this size

    class Slow(ArchiveWriter):
        def add(self, png):
            ahead.append(max(made) - self.count)
            super().add(png)

    part = replace(registry.find("source", "folder"), make=lambda *_: Images("made up", 60, read, None, "x"))
    monkeypatch.setitem(registry._parts, ("source", "folder"), part)
    monkeypatch.setattr(pipeline, "ArchiveWriter", Slow)
    prepare("folder", tmp_path / "o.zip", workers=2)
    assert len(ahead) == 60 and max(ahead) <= 2 * 3


def test_an_archive_is_what_pythons_zipfile_writes(tmp_path, rgb_images):
    write_archive(tmp_path / "a.zip", rgb_images, [3] * 12)
    with zipfile.ZipFile(tmp_path / "a.zip") as ours, zipfile.ZipFile(tmp_path / "b.zip", "w") as theirs:
        for info in ours.infolist():
            theirs.writestr(zipfile.ZipInfo(info.filename, (1980, 1, 1, 0, 0, 0)), ours.read(info))
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


def test_an_archive_of_more_than_65535_images_is_a_zip64(tmp_path):
    with open(tmp_path / "a.zip", "w+b") as file:
        writer = ArchiveWriter(file)
        for i in range(66_000):
            writer.add(b"%d" % i)
        writer.finish(None)
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert len(archive.namelist()) == 66_001
        assert archive.read("00065/img00065999.png") == b"65999" and archive.read("dataset.json") == b'{"labels": null}'


def test_an_archive_of_more_than_4_gib_is_a_zip64(tmp_path):
    """Members beyond 2 and 4 GiB are found. The file is sparse: the first member's gigabytes are a hole."""
    with open(tmp_path / "a.zip", "w+b") as file:
        writer = ArchiveWriter(file)
        writer.add(b"")
        for gap in (3 << 30, 2 << 30):
            file.seek(gap, 1)
            writer._end += gap
            writer._sizes[-1] += gap
            writer.add(b"behind the hole")
        writer.finish([0, 1, 2])
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert archive.read("00000/img00000002.png") == b"behind the hole"
        assert archive.getinfo("dataset.json").header_offset > 5 << 30


# The command line -----------------------------------------------------------------------------------------------------


def test_params_yaml_states_what_the_command_line_can(tmp_path, classes, capsys):
    shutil.copy("params.yaml", tmp_path / "params.yaml")
    params = yaml.safe_load((tmp_path / "params.yaml").read_text())
    params["datasets"]["pets"] = {"source": "folder", "path": str(write_folder(tmp_path / "in", classes)), "images": 6,
                                  "resolution": 8, "channels": 3, "classes": 2}  # fmt: skip
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    files = [str(tmp_path / name) for name in ("a.zip", "b.zip")]
    assert main(["prepare", files[0], "--dataset", "pets", "--params", str(tmp_path / "params.yaml")]) == 0
    options = ["--images", "6", "--resolution", "8", "--channels", "3", "--classes", "2"]
    assert main(["prepare", files[1], "--source", "folder", "--input", str(tmp_path / "in"), *options]) == 0
    assert "6 images of 8x8, 2 classes" in capsys.readouterr().err
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    params["datasets"]["pets"]["images"] = 7
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    assert main(["prepare", str(tmp_path / "c.zip"), "--dataset", "pets", "--params", str(tmp_path / "params.yaml")])
    assert "7 images expected, as stated; 6 images found" in capsys.readouterr().err
