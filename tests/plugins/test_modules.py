"""Plugins that are modules: imported by name, or found by the entry points of an installed package."""

import importlib
import sys

import pytest

from edm import registry
from edm.config import SamplerConfig
from edm.errors import UserError

SOLVER = "import edm\n@edm.register('solver', '{}')\ndef solve(denoise, latents, sigmas, noise):\n    return latents\n"


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of two files with an entry point, in a folder of sys.path."""
    (tmp_path / "lab_package").mkdir()
    (tmp_path / "lab_package" / "__init__.py").write_text("from lab_package import solvers\n")
    (tmp_path / "lab_package" / "solvers.py").write_text(SOLVER.format("lab-installed"))
    about = tmp_path / "lab_package-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: lab-package\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[edm.plugins]\nlab = lab_package\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registry, "_looked_for_installed", False)
    importlib.invalidate_caches()
    yield tmp_path / "lab_package"
    for name in [name for name in sys.modules if name.startswith("lab_package")]:
        del sys.modules[name]


def test_a_module_is_a_plugin_whose_hash_is_that_of_all_its_files(package):
    registry.load(["lab_package"])
    part = registry.find("solver", "lab-installed")
    files = sorted(package.rglob("*.py"))
    assert part.source == registry.Source("lab_package", registry._hash(files, package))
    registry.load(["lab_package"])
    assert registry.find("solver", "lab-installed") is part


def test_a_module_that_was_imported_before_has_the_same_source(package):
    importlib.import_module("lab_package")
    assert registry.find("solver", "lab-installed").source.file.endswith("solvers.py")
    registry.load(["lab_package"])
    assert registry.find("solver", "lab-installed").source.file == "lab_package"


def test_an_installed_package_is_found_without_being_named(package):
    assert "lab_package" not in sys.modules
    assert SamplerConfig.from_dict({"solver": "lab-installed"}).parts()[0].source.file == "lab_package"


def test_names_of_ours_never_look_for_installed_packages(package):
    SamplerConfig(solver="heun")
    assert "lab_package" not in sys.modules
    with pytest.raises(UserError, match="solver 'lab-other' is unknown"):
        SamplerConfig(solver="lab-other")
    assert "lab_package" in sys.modules, "an unknown name does"
