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


def test_a_kept_file_that_cannot_be_loaded_is_made_again(source, tmp_path):
    native.library(source)
    kept(tmp_path)[0].write_bytes(b"cut off")
    native.library.cache_clear()
    assert native.library(source).answer() == 42
    assert [path.stat().st_size > 1000 for path in (tmp_path / "cache" / "edm").iterdir()] == [True]


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
