"""Imports of ``edm`` keep to the floors: the contract in pyproject.toml; and what its functions keep is no tensor."""

import ast
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_imports_point_down_the_floors():
    lint = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([lint, "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_cache_keeps_tensors():
    """One that is first made in inference mode, under torch.func or with fake tensors is of no use outside."""
    kept = {
        f"{file.relative_to(ROOT)}:{function.lineno}": ast.unparse(function.returns)
        for file in (ROOT / "edm").rglob("*.py")
        for function in ast.walk(ast.parse(file.read_text("utf-8")))
        if isinstance(function, ast.FunctionDef)
        and any(re.search(r"cache\b", ast.unparse(d)) for d in function.decorator_list)
    }
    assert len(kept) > 5
    assert not {place: returns for place, returns in kept.items() if "Tensor" in returns}
