"""C code beside the Python code is compiled once, and its absence is no error."""

import shutil
import subprocess
import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from edm.networks import native, winograd
from edm.networks.layers import Conv


@pytest.fixture
def source(tmp_path, monkeypatch):
    """A file of C and a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "answer.c"
    path.write_text("#include <omp.h>\nint answer(void) { return 42 + 0 * omp_get_max_threads(); }\n")
    native.library.cache_clear()
    yield path
    native.library.cache_clear()


def kept(tmp_path):
    return list((tmp_path / "cache").rglob("*.so"))


def test_it_is_compiled_once_and_again_after_a_change(source, tmp_path, monkeypatch):
    assert native.library(source).answer() == 42
    assert len(kept(tmp_path)) == 1
    native.library.cache_clear()
    with monkeypatch.context() as without:
        without.setattr(shutil, "which", lambda name: None)
        assert native.library(source).answer() == 42  # also where the compiler is gone
    source.write_text(source.read_text().replace("42", "43"))
    native.library.cache_clear()
    assert native.library(source).answer() == 43
    assert len(kept(tmp_path)) == 2


def test_without_a_folder_for_it_every_process_compiles(source, tmp_path, monkeypatch):
    (tmp_path / "cache").write_text("a file")
    assert native.library(source).answer() == 42
    assert kept(tmp_path) == [] and [p.name for p in tmp_path.iterdir() if p.name.endswith(".so")] == []


@pytest.mark.parametrize("change", [
    lambda content: b"", lambda content: b"cut off", lambda content: content[: len(content) // 2],
    lambda content: content[:-1], lambda content: content[:5000] + bytes(len(content) - 5000),
], ids=["empty", "7 bytes", "half", "all but a byte", "zeros at the end"])  # fmt: skip
def test_a_kept_file_that_is_not_whole_is_made_again(source, tmp_path, change):
    """To load a part of a library would end the process."""
    native.library(source)
    path = kept(tmp_path)[0]
    whole = path.read_bytes()
    path.write_bytes(change(whole))
    native.library.cache_clear()
    assert native.library(source).answer() == 42
    assert kept(tmp_path) == [path] and path.read_bytes() == whole
    assert list(path.parent.iterdir()) == [path]


def test_where_files_for_a_while_cannot_be_executed_the_cache_is_the_place(source, tmp_path, monkeypatch):
    monkeypatch.setattr(native.tempfile, "tempdir", str(tmp_path / "nowhere"))
    assert native.library(source).answer() == 42


def test_without_a_home_nothing_is_kept_in_the_working_directory(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for relative in ("cache", "~/.cache"):
        monkeypatch.setenv("XDG_CACHE_HOME", relative)
        native.library.cache_clear()
        assert native.library(source).answer() == 42
    assert [path.name for path in tmp_path.iterdir()] == ["answer.c"]


@pytest.mark.parametrize("script, told", [
    ("exit 1", "returned non-zero exit status 1"),
    ("printf '\\377\\n' >&2; exit 1", "\ufffd"),
    ("sleep 60", "did not end"),
], ids=["silent", "no UTF-8", "hangs"])  # fmt: skip
def test_a_compiler_that_misbehaves_is_told_in_one_line(source, tmp_path, monkeypatch, script, told):
    (tmp_path / "gcc").write_text(f"#!/bin/sh\n{script}\n")
    (tmp_path / "gcc").chmod(0o755)
    monkeypatch.setattr(shutil, "which", lambda name: str(tmp_path / "gcc"))
    monkeypatch.setattr(native, "MOST_SECONDS", 0.5)
    with pytest.warns(RuntimeWarning, match=f"^answer\\.c: .*{told}.*; torch's slower layers take its place$"):
        assert native.library(source) is None


@pytest.mark.parametrize("change", ["no compiler", "another system", "another processor"])
def test_where_nothing_can_be_compiled_there_is_no_library(source, change, monkeypatch):
    if change == "no compiler":
        monkeypatch.setattr(shutil, "which", lambda name: None)
    elif change == "another system":
        monkeypatch.setattr(native.sys, "platform", "darwin")
    else:
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert native.library(source) is None


def test_a_compiler_that_fails_is_told_in_one_line(source):
    source.write_text("this is no C")
    with pytest.warns(RuntimeWarning, match=r"^answer\.c: .*error.*; torch's slower layers take its place$"):
        assert native.library(source) is None


def test_code_for_every_kind_of_processor_gives_the_same(monkeypatch, tmp_path):
    """One with AVX-512 runs both; each rounds otherwise."""
    kinds = list(native.FLAGS)
    kinds = kinds[: kinds.index(torch.backends.cpu.get_cpu_capability()) + 1]
    x, weight, bias = torch.randn(9, 20, 8, 12), torch.randn(24, 20, 3, 3), torch.randn(24)
    exact = x.double().requires_grad_(), weight.double().requires_grad_()
    expected = F.conv2d(*exact, padding=1)
    expected.backward(expected.detach())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for kind in kinds:
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda kind=kind: kind)
        forget()
        with torch.no_grad():
            found = winograd.convolve(x, weight, bias), winograd.weight_gradient(x, expected.detach().float())
        torch.testing.assert_close(found[0].double(), expected + bias[:, None, None], atol=5e-4, rtol=1e-4)
        torch.testing.assert_close(found[1].double(), exact[1].grad, atol=5e-2, rtol=1e-4)
    forget()
    assert len(list(tmp_path.rglob("*.so"))) == len(kinds)


def forget():
    for cached in (native.library, winograd._functions, winograd._size):
        cached.cache_clear()


def test_a_layer_without_it_is_torchs(monkeypatch):
    monkeypatch.setattr(native, "library", lambda source: None)
    layer, x = Conv(16, 16, 3), torch.randn(4, 16, 8, 8)
    assert torch.equal(layer(x), F.conv2d(x, layer.weight, layer.bias, padding=1))


def test_threads_are_torchs_own():
    """The system's library of threads would compete with torch's for the cores."""
    assert native.library(winograd.SOURCE)
    maps = Path("/proc/self/maps").read_text()
    threads = {line.split()[-1] for line in maps.splitlines() if "libgomp" in line or "libomp" in line}
    assert threads and all("site-packages" in path for path in threads)


def test_the_code_compiles_without_a_warning(tmp_path):
    gcc = shutil.which("gcc")
    for flags in native.FLAGS.values():
        done = subprocess.run(
            [gcc, *native.COMMON, *flags, "-Wall", "-Wextra", "-o", tmp_path / "x.so", winograd.SOURCE, "-lm"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, "")
