"""A plugin that is missing, fails or does not fit says so in one line: what, where, and what to do."""

import pytest

from edm import registry
from edm.errors import UserError

SOLVER = "import edm\n@edm.register('solver', 'lab')\ndef solve(denoise, latents, sigmas, noise"
BROKEN = {
    "a syntax error": ("def f(:\n", r"plugin\.py:1: not valid Python"),
    "a missing package": ("import edm\nimport no_such\n", r"plugin\.py:2: ModuleNotFoundError: .*no_such"),
    "an error of its own": ("import edm\n\n1 / 0\n", r"plugin\.py:3: ZeroDivisionError"),
    "no part": ("import edm\n", r"plugin\.py: registers no part; mark one with @edm\.register"),
    "an unknown kind": (
        "import edm\n@edm.register('solvr', 'lab')\ndef f(): ...\n",
        r"kind 'solvr' is unknown; did you mean 'solver'\?",
    ),
    "a name of ours": (
        SOLVER.replace("'lab'", "'heun'") + "): ...\n",
        r"solver heun is one of edm's own; choose another name",
    ),
    "a name that no file can have": (
        SOLVER.replace("'lab'", "'a/b'") + "): ...\n",
        r"'a/b' is no name for a solver",
    ),
    "an unknown fact": (
        SOLVER.replace("'lab'", "'lab', evaluation=2") + "): ...\n",
        r"no argument 'evaluation' for a solver; did you mean 'evaluations'\?",
    ),
    "a fact of another type": (
        SOLVER.replace("'lab'", "'lab', evaluations='two'") + "): ...\n",
        r"evaluations is 'two'; expected a value such as 1",
    ),
    "another signature": (
        SOLVER.replace(", noise", "") + "): ...\n",
        r"it takes denoise, latents, sigmas; a solver takes denoise, latents, sigmas, noise",
    ),
    "a setting without annotation": (SOLVER + ", *, eta=0.5): ...\n", r"setting eta has no annotation; state int"),
    "an annotation that no file can state": (
        SOLVER + ", *, eta: dict = {}): ...\n",
        r"setting eta has the annotation <class 'dict'>; state int",
    ),
    "a default of another type": (
        SOLVER + ", *, eta: float = 'half'): ...\n",
        r"the default of eta, 'half', is not a finite number",
    ),
    "settings without names": (SOLVER + ", **more): ...\n", r"names and defaults; \*\*more declares none"),
    "a class without a method": (
        "import edm\n@edm.register('loss', 'lab')\nclass Loss:\n    def sigma(self, u): ...\n",
        r"loss lab: class Loss has no method density; see edm\.protocols",
    ),
    "no function": (
        "import edm\nedm.register('metric', 'lab')(5)\n",
        r"metric lab: int is neither a function nor a class",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_plugin_is_one_line(what, plugin):
    text, expected = BROKEN[what]
    path = plugin(text, load=False)
    with pytest.raises(UserError, match=expected) as caught:
        registry.load([str(path)])
    assert "\n" not in str(caught.value) and str(caught.value).startswith(str(path))
    assert not registry.plugins(), "nothing of a broken plugin remains"


def test_a_plugin_that_is_not_there_is_named():
    with pytest.raises(UserError, match=r"my_lab/none\.py: no such plugin file"):
        registry.load(["my_lab/none.py"])
    with pytest.raises(UserError, match=r"plugin no_such_lab: no module of that name; install it, or state the path"):
        registry.load(["no_such_lab"])


def test_two_plugins_cannot_share_a_name(plugin):
    text = SOLVER + "):\n    return latents\n"
    first = plugin(text, "one.py")
    with pytest.raises(UserError, match=rf"solver lab is registered by {first}, too; rename one"):
        plugin(text, "two.py")
    assert registry.find("solver", "lab").source.file == str(first)


def test_a_changed_file_is_loaded_again(plugin):
    path = plugin(SOLVER + ", *, eta: float = 0.5):\n    return latents\n")
    before = registry.find("solver", "lab")
    registry.load([str(path)])
    assert registry.find("solver", "lab") is before
    plugin(SOLVER + ", *, eta: float = 0.6):\n    return latents\n")
    after = registry.find("solver", "lab")
    assert after.settings["eta"].default == 0.6 and after.source.sha256 != before.source.sha256
