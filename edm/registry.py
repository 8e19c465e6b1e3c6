"""The parts of the design space, by kind and name: our own and those of plugins. Does not import torch.

``register`` adds a part; its signature declares its settings. :func:`own` names parts of this package beforehand, with
the module that registers them, so that names can be checked without importing torch. A plugin is a file or a module
that registers parts: params.yaml names it, ``edm --plugins`` does, or the entry-point group ``edm.plugins`` does.
"""

import hashlib
import importlib
import importlib.util
import inspect
import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, TypeVar

from edm import protocols
from edm.checked import fits, in_words, schema_of
from edm.errors import UserError, nearest, one_line, out_of_memory

GROUP = "edm.plugins"  # of entry points
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.]*(-[A-Za-z0-9_.]+)*")
_OF_TRAINING = ("sigma_data", "P_mean", "P_std")
_SIZES = ("model_channels", "channel_mult", "num_blocks", "attn_resolutions", "dropout")
_OF_SAMPLING = ("num_steps", "alpha", "rho", "S_churn", "S_min", "S_max", "S_noise", "tolerance", "order", "final")


@dataclass(frozen=True)
class Kind:
    """A kind of part.

    shared: settings that are fields of our configurations. facts: what ``register`` takes, with defaults. made_of: what
    a part gets to make an object with the protocol's methods. settable: whether params.yaml states its settings.
    """

    protocol: type
    shared: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    made_of: tuple[str, ...] = ()
    settable: bool = True

    @property
    def given(self) -> tuple[str, ...]:
        """What the program passes to a part, in order."""
        if self.methods:
            return self.made_of
        call = vars(self.protocol)["__call__"]
        return tuple(name for name in inspect.signature(call).parameters if name != "self")

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods of the object that a part makes; none if the part itself is called."""
        return tuple(name for name in vars(self.protocol) if not name.startswith("_"))


#: By the key of params.yaml that names a part; "metric" is for an entry of ``metrics``, "study" for the ``kind`` of an
#: entry of ``analyses``.
KINDS: dict[str, Kind] = {
    "schedule": Kind(protocols.Schedule, made_of=("sigma_min", "sigma_max")),
    "scaling": Kind(protocols.Scaling),
    "discretization": Kind(protocols.Discretization, ("rho",), {"sigma_range": (0.002, 80.0)}),
    "solver": Kind(protocols.Solver, _OF_SAMPLING, {"evaluations": 1, "levels": True}),
    "preconditioning": Kind(protocols.Preconditioning, _OF_TRAINING),
    "loss": Kind(protocols.Loss, _OF_TRAINING),
    "architecture": Kind(protocols.Architecture, _SIZES, made_of=("resolution", "channels", "classes", "augment_dim")),
    "augmentation": Kind(protocols.Augmentation, (), {"width": 0}),
    "optimizer": Kind(protocols.Optimizer),
    "lr_schedule": Kind(protocols.LrSchedule, ("lr_rampup",)),
    "source": Kind(protocols.Source),
    "features": Kind(protocols.Features, facts={"meaning": ""}, made_of=("weights",), settable=False),
    "metric": Kind(protocols.Metric, (), {"higher": True, "fewest": 2, "meaning": ""}),
    "study": Kind(protocols.Study, (), {"dataset": False, "features": False}),
}


@dataclass(frozen=True)
class Source:
    """The file that a part of a plugin comes from: its path as stated, and the SHA-256 of its content."""

    file: str
    sha256: str


@dataclass(frozen=True)
class Setting:
    """A setting of a part: its annotated type, and its default."""

    hint: Any
    default: Any

    @property
    def is_list(self) -> bool:
        return isinstance(self.default, tuple)

    def schema(self) -> dict[str, Any]:
        """Its JSON Schema."""
        return schema_of(self.hint, {})


@dataclass(frozen=True)
class Part:
    """A registered part.

    make: the registered function or class. settings: those that the part declares itself. shared: fields of the
    configuration that it also takes. source: None for parts of this package, and for those that a notebook registers.
    """

    kind: str
    name: str
    make: Callable[..., Any]
    settings: dict[str, Setting]
    shared: tuple[str, ...]
    facts: dict[str, Any]
    source: Source | None
    own: bool = False

    @property
    def label(self) -> str:
        return f"{self.kind} {self.name}"

    @property
    def where(self) -> str:
        """The beginning of a message about the part."""
        return f"{self.source.file}: {self.label}" if self.source else self.label

    def bound(self, stated: Mapping[str, Any], config: object = None) -> dict[str, Any]:
        """Its keyword arguments: the stated settings, and the fields of a configuration that it takes."""
        return {name: getattr(config, name) for name in self.shared if hasattr(config, name)} | dict(stated)

    def check_settings(self, stated: Mapping[str, Any]) -> dict[str, Any]:
        """The stated settings without those equal to their default, lists as tuples.

        Raises UserError for an unknown name, with the nearest one, and for a value of another type.
        """
        found = {}
        for name, value in stated.items():
            key = f"{self.kind}.{name}"
            if name not in self.settings:
                known = [f"{self.kind}.{one}" for one in self.settings]
                raise UserError(f"{self.label} has no setting {key}{nearest(key, known) if known else ': it has none'}")
            setting = self.settings[name]
            if not fits(value, setting.hint):
                raise UserError(f"{key} is {value!r}, which is not {in_words(setting.hint)}")
            value = tuple(value) if isinstance(value, list) else value
            if value != setting.default:
                found[name] = value
        return found

    def __call__(self, *given: Any, **settings: Any) -> Any:
        """What ``make`` gives; an error inside a plugin becomes one line."""
        with guarded(self):
            made = self.make(*given, **settings)
        lacking = (
            [] if self.own else [name for name in KINDS[self.kind].methods if not callable(getattr(made, name, None))]
        )
        if lacking:
            raise UserError(f"{self.where}: {type(made).__name__} has no method {lacking[0]}; see edm.protocols")
        return made


_own: dict[str, dict[str, str]] = {kind: {} for kind in KINDS}  # kind → name → the module that registers it
_hidden: set[tuple[str, str]] = set()
_parts: dict[tuple[str, str], Part] = {}
_loaded: dict[str, Source] = {}  # the plugins by their real paths
_loading: Source | None = None
_version = 0
_looked_for_installed = False


def own(kind: str, names: Iterable[str], module: str, hidden: bool = False) -> None:
    """Names parts of this package, which ``module`` registers when one of them is first used.

    hidden: not to be chosen in params.yaml.
    """
    _own[kind] |= dict.fromkeys(names, module)
    _hidden.update((kind, name) for name in names if hidden)


class Names(Sequence[str]):
    """The names of all parts of a kind that can be chosen, as a sequence that follows what is registered."""

    def __init__(self, kind: str) -> None:
        self._kind = kind

    def _now(self) -> list[str]:
        ours = [name for name in _own[self._kind] if (self._kind, name) not in _hidden]
        return [*ours, *(name for kind, name in _parts if kind == self._kind and name not in _own[kind])]

    def __getitem__(self, place: Any) -> Any:
        return self._now()[place]

    def __len__(self) -> int:
        return len(self._now())

    def __contains__(self, name: object) -> bool:
        if name in _own[self._kind] and (self._kind, name) not in _hidden:  # of each configuration: keep it fast
            return True
        return name in self._now() or (isinstance(name, str) and load_installed() and name in self._now())


def find(kind: str, name: str) -> Part:
    """The part. Raises UserError, with the nearest name, if no part of the kind is called so."""
    if (kind, name) not in _parts and name in _own[kind]:
        importlib.import_module(_own[kind][name])
    if (kind, name) not in _parts and name not in _own[kind]:
        load_installed()
    if (kind, name) not in _parts:
        raise UserError(f"{kind} {name!r} is unknown{nearest(name, Names(kind))}")
    return _parts[kind, name]


def version() -> int:
    """A number that grows whenever a plugin registers a part."""
    return _version


def is_own(kind: str, name: str) -> bool:
    """Whether a part belongs to this package."""
    return name in _own[kind]


def plugins(kind: str | None = None) -> list[Part]:
    """The registered parts that are not our own, of one kind or of all."""
    return [part for part in _parts.values() if not part.own and kind in (None, part.kind)]


def sources() -> list[Source]:
    """The files of the loaded plugins."""
    return list(dict.fromkeys(part.source for part in plugins() if part.source is not None))


# Registration ---------------------------------------------------------------------------------------------------------

_Made = TypeVar("_Made", bound=Callable[..., Any])


def register(kind: str, name: str, **facts: Any) -> Callable[[_Made], _Made]:
    """Registers a function or a class as a part of the design space; a decorator.

    kind: "schedule", "scaling", "discretization", "solver", "preconditioning", "loss", "architecture", "augmentation",
    "optimizer", "lr_schedule", "source", "features", "metric" or "study"; :mod:`edm.protocols` says what a part of each
    kind gets and gives. name: by which params.yaml chooses it. facts: what else is known of it, such as ``evaluations``
    of a solver. Parameters with a default value are its settings: annotate them with int, float, bool, str, a tuple of
    numbers such as ``tuple[float, ...]``, or one of these or None.
    Raises UserError, in one line, for an unknown kind or fact, for a name that is taken, and for a part that does not
    fit the protocol of its kind.
    """
    if kind not in KINDS:
        raise UserError(f"register: kind {kind!r} is unknown{nearest(kind, KINDS)}")
    if not isinstance(name, str) or not _NAME.fullmatch(name) or len(name) > 100:
        raise UserError(f"register: {name!r} is no name for a {kind}: letters, digits, points, _ and single hyphens")
    for fact in facts:
        if fact not in KINDS[kind].facts:
            known = nearest(fact, KINDS[kind].facts) if KINDS[kind].facts else "; it takes none"
            raise UserError(f"{kind} {name}: register has no argument {fact!r} for a {kind}{known}")
        like = KINDS[kind].facts[fact]
        if not fits(facts[fact], tuple[float, ...] if isinstance(like, tuple) else type(like)):
            raise UserError(f"{kind} {name}: {fact} is {facts[fact]!r}; expected a value such as {like!r}")

    def add(made: _Made) -> _Made:
        ours = getattr(made, "__module__", "") == _own[kind].get(name, ())
        source = None if ours else _loading or _source_of(made)
        if not ours and name in _own[kind]:
            raise UserError(f"{kind} {name} is one of edm's own; choose another name")
        before = _parts.get((kind, name))
        if before is not None and source and before.source and before.source.file != source.file:
            raise UserError(f"{kind} {name} is registered by {before.source.file}, too; rename one of them")
        settings = {} if ours else _settings(kind, name, made)
        shared = tuple(key for key in settings if key in KINDS[kind].shared)
        settings = {key: value for key, value in settings.items() if key not in shared}
        told = {**KINDS[kind].facts, **facts}
        global _version
        _version += not ours
        _parts[kind, name] = Part(kind, name, made, settings, shared, told, source, ours)
        return made

    return add


def _settings(kind: str, name: str, made: Any) -> dict[str, Setting]:
    """The parameters of a part beyond those that the program gives. Raises UserError if it does not fit its kind."""
    if not callable(made):
        raise UserError(f"{kind} {name}: {type(made).__name__} is neither a function nor a class")
    try:
        given, parameters = KINDS[kind].given, list(inspect.signature(made).parameters.values())
    except (TypeError, ValueError):
        raise UserError(f"{kind} {name}: {made!r} has no signature to read; wrap it in a function") from None
    takes = f"a {kind} takes {', '.join(given) or 'settings with default values only'}"
    needed = [one for one in parameters if one.default is one.empty and one.kind not in (one.VAR_KEYWORD,)]
    several = [one for one in parameters if one.kind in (one.VAR_POSITIONAL, one.VAR_KEYWORD)]
    if several:
        raise UserError(f"{kind} {name}: settings have names and defaults; {several[0]} declares none")
    positional = [one for one in needed if one.kind is not one.KEYWORD_ONLY]
    if [one.name for one in positional] != [one.name for one in needed] or len(positional) != len(given):
        raise UserError(f"{kind} {name}: it takes {', '.join(one.name for one in needed) or 'nothing'}; {takes}, and "
                        "each setting has a default value")  # fmt: skip
    if len(parameters) > len(needed) and not KINDS[kind].settable:
        raise UserError(f"{kind} {name}: {kind} of a plugin take no settings; register a name for each variant")
    if isinstance(made, type):
        lacking = [one for one in KINDS[kind].methods if not callable(getattr(made, one, None))]
        if lacking:
            raise UserError(f"{kind} {name}: class {made.__name__} has no method {lacking[0]}; see edm.protocols")
    found = {}
    for one in parameters:
        if one.default is one.empty:
            continue
        hint = _evaluated(kind, name, one, made)
        value = tuple(one.default) if isinstance(one.default, list) else one.default
        if not fits(value, hint) and value != math.inf:
            raise UserError(f"{kind} {name}: the default of {one.name}, {one.default!r}, is not {in_words(hint)}")
        found[one.name] = Setting(hint, value)
    return found


def _evaluated(kind: str, name: str, parameter: inspect.Parameter, made: Any) -> Any:
    """The annotation of a setting. Raises UserError if it is missing or none of the supported ones."""
    hint = parameter.annotation
    if isinstance(hint, str):
        try:
            # Of a plugin whose code has run already: this adds nothing that it could not do.
            hint = eval(hint, vars(sys.modules[made.__module__]))
        except Exception:
            hint = parameter.empty
    try:
        in_words(hint)
    except (KeyError, TypeError, IndexError):
        told = "has no annotation" if hint is parameter.empty else f"has the annotation {parameter.annotation}"
        raise UserError(f"{kind} {name}: setting {parameter.name} {told}; state int, float, bool, str, "
                        "tuple[float, ...], tuple[int, ...], or one of these or None") from None  # fmt: skip
    return hint


def _source_of(made: Any) -> Source | None:
    """The file of what is registered without a plugin being loaded: by a script or an imported module."""
    file = getattr(sys.modules.get(getattr(made, "__module__", "")), "__file__", None)
    return Source(file, _hash([Path(file)])) if file and os.path.isfile(file) else None


# Plugins --------------------------------------------------------------------------------------------------------------


def load(entries: Iterable[str], base: str | os.PathLike[str] = ".") -> None:
    """Loads plugins: paths of Python files, relative to ``base``, or names of modules that can be imported.

    A plugin that was loaded before is loaded again only if its file changed. Raises UserError, in one line, for a
    plugin that is missing, fails, does not fit, or registers nothing.
    """
    for entry in entries:
        if is_path(entry):
            _load_file(entry, Path(base, entry))
        else:
            _load_module(entry)


def is_path(entry: str) -> bool:
    """Whether a plugin is named by the path of its file, not as a module."""
    return entry.endswith(".py") or os.sep in entry


def load_installed() -> bool:
    """Loads the plugins of installed packages, once; whether it did. They cost nothing until a name is unknown."""
    global _looked_for_installed
    if _looked_for_installed:
        return False
    _looked_for_installed = True
    from importlib import metadata  # takes longer to load than all of this file

    found = metadata.entry_points(group=GROUP)
    for entry in found:
        _load_module(entry.value.partition(":")[0])
    return bool(found)


def _load_file(stated: str, path: Path) -> None:
    if not path.is_file():
        raise UserError(f"{stated}: no such plugin file; correct `plugins`, or the path given to --plugins")
    key, code = os.path.realpath(path), path.read_bytes()
    source = Source(stated, hashlib.sha256(code).hexdigest())
    if key in _loaded and _loaded[key].sha256 == source.sha256:
        return
    if key in _loaded:
        _forget(_loaded[key])
    name = f"edm_plugin_{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    module = ModuleType(name)
    module.__file__ = key
    sys.modules[name] = module  # dataclasses look for it there
    # A plugin is code that the user names in `plugins` or --plugins; no other file, such as a checkpoint, loads one.
    # Not imported: a cached .pyc of the same second and size would run other code than the one that was hashed.
    _execute(source, key, lambda: exec(compile(code, key, "exec"), vars(module)))


def _load_module(name: str) -> None:
    try:
        found = importlib.util.find_spec(name)
    except (ImportError, ValueError) as error:
        raise UserError(f"plugin {name}: {one_line(error)}; install it, or state the path of a .py file") from None
    if found is None or found.origin is None:
        raise UserError(f"plugin {name}: no module of that name; install it, or state the path of a .py file")
    folder = Path(found.origin).parent if found.submodule_search_locations else None
    files = sorted(folder.rglob("*.py")) if folder else [Path(found.origin)]
    source = Source(name, _hash(files, folder))
    if name in _loaded and _loaded[name] == source:
        return
    if name in sys.modules and name not in _loaded:  # it was imported, so its parts are registered
        _loaded[name] = source
        for place, part in _parts.items():
            module = getattr(part.make, "__module__", "")
            if module == name or module.startswith(f"{name}."):
                _parts[place] = Part(**{**vars(part), "source": source})
        return
    _execute(source, name, lambda: importlib.import_module(name))


def _execute(source: Source, key: str, run: Callable[[], object]) -> None:
    """Runs the code of a plugin, whose parts get that source."""
    global _loading
    before, _loading = _loading, source
    try:
        run()
        if all(part.source != source for part in _parts.values()):
            raise UserError('registers no part; mark one with @edm.register("solver", "NAME")')
        _loaded[key] = source
    except UserError as error:
        raise UserError(f"{source.file}: {error}") from None
    except SyntaxError as error:
        raise UserError(f"{source.file}:{error.lineno}: not valid Python ({error.msg})") from None
    except (Exception, SystemExit) as error:
        raise UserError(f"{source.file}{_line(error, key)}: {type(error).__name__}: {one_line(error)}") from None
    finally:
        _loading = before
        if key not in _loaded or _loaded[key] != source:
            _forget(source)


def _forget(source: Source) -> None:
    global _version
    _version += 1
    for place in [place for place, part in _parts.items() if part.source == source]:
        del _parts[place]


def _hash(files: Iterable[Path], folder: Path | None = None) -> str:
    """SHA-256 of a file, or of the names and contents of the files of a package."""
    if folder is None:
        (file,) = files
        return hashlib.sha256(file.read_bytes()).hexdigest()
    found = hashlib.sha256()
    for file in files:
        content = hashlib.sha256(file.read_bytes()).hexdigest()
        found.update(f"{file.relative_to(folder)} {content}\n".encode())
    return found.hexdigest()


@contextmanager
def guarded(part: Part) -> Iterator[None]:
    """Turns an error inside a plugin into one line with its place in the plugin's file."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if part.own or out_of_memory(error):
            raise
        file = inspect.getsourcefile(part.make) if part.source else None
        line = _line(error, os.path.realpath(file)) if file else ""
        place = f"{part.source.file}{line}: {part.label}" if part.source else part.label
        raise UserError(f"{place}: {type(error).__name__}: {one_line(error)}") from error


def _line(error: BaseException, file: str) -> str:
    """ ":LINE", the innermost line of a file in an error's traceback."""
    found, trace = "", error.__traceback__
    while isinstance(trace, TracebackType):
        if os.path.realpath(trace.tb_frame.f_code.co_filename) == file:
            found = f":{trace.tb_lineno}"
        trace = trace.tb_next
    return found
