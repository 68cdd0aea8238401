"""Modules that libraries import and hardly any run uses: a command loads them when they are first used.

Importing torch's compiler takes as long as importing torch. diffusers, transformers and torchvision import it to mark
functions for it, and scipy for one function each. In place of such a module they get a stand-in, which keeps the marks.
Whatever else is asked of a stand-in is answered by the module itself, which is loaded then and takes its place.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import FunctionType, ModuleType, SimpleNamespace
from typing import Any

COMPILER = "torch._dynamo"
CALLED_LATER: dict[str, tuple[str, ...]] = {
    COMPILER: (),
    f"{COMPILER}.utils": ("is_compile_supported",),
    f"{COMPILER}._trace_wrapped_higher_order_op": ("TransformGetItemToIndex",),
    "scipy.integrate": (),
    "scipy.optimize": ("linear_sum_assignment",),
    "scipy.stats": (),
    "diffusers.models.transformers": (),
    "transformers.models": (),
}
"""Module -> what others import from it by name and call later, if at all."""
OF_PARTS = ("diffusers.models.transformers", "transformers.models")
"""Packages of which one part or another is used, and which import or read all of them. Their parts do not need them."""

_lock = threading.Lock()
_deferred: set[str] = set()
"""The modules that are not loaded yet."""
_marks: list[tuple[str, Any]] = []
"""Marks that the compiler makes once it is loaded: their names there, and what they are put on."""


def defer_imports() -> None:
    """From now on put stand-ins in place of these modules, but for those that are loaded already."""
    if not any(isinstance(finder, Finder) for finder in sys.meta_path):
        _deferred.update(name for name in CALLED_LATER if root(name) not in sys.modules)
        sys.meta_path.insert(0, Finder())


def load(package: str) -> None:
    """Load a deferred package in place of its stand-ins, also where others have imported names from them."""
    with _lock:  # only one thread takes them away; others then wait for the module as Python lets them
        if package not in _deferred:
            return
        names = {name for name in _deferred if root(name) == package}
        _deferred.difference_update(names)
        stand_ins = [sys.modules.pop(name) for name in names if name in sys.modules]
        parent, _, child = package.rpartition(".")
        vars(sys.modules[parent]).pop(child, None)
    import_module(package)
    replace_imported(stand_ins)
    if package == COMPILER:
        put_marks()


def replace_imported(stand_ins: Sequence[ModuleType]) -> None:
    """Where modules have imported what a stand-in gave, give them the same of the module that is loaded now."""
    given = {
        id(value): (stand_in.__name__, name)
        for stand_in in stand_ins
        for name, value in vars(stand_in).items()
        if not name.startswith("__") and not isinstance(value, ModuleType)
    }
    own = sys.modules[__name__]
    for module in [module for module in sys.modules.values() if isinstance(module, ModuleType) and module is not own]:
        for name, value in list(vars(module).items()):
            if id(value) in given:
                source, called = given[id(value)]
                setattr(module, name, getattr(import_module(source), called))


class Finder(MetaPathFinder, Loader):
    """Finds stand-ins for the modules that are deferred, and makes them."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """A stand-in's specification; None leaves a module to Python's own finders."""
        if name in _deferred:
            spec = PathFinder.find_spec(name, path)
            if spec is not None:
                spec.loader = self
            return spec
        if root(name) in _deferred:  # another part of a package, which is therefore used
            load(root(name))
            if name in sys.modules:
                return ModuleSpec(name, Loaded(sys.modules[name]))
        return None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """A stand-in."""
        return StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """There is nothing to run."""


class Loaded(Loader):
    """Gives a module that is loaded already."""

    def __init__(self, module: ModuleType) -> None:
        self.module, self.spec = module, module.__spec__

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """The module."""
        return self.module

    def exec_module(self, module: ModuleType) -> None:
        """Python has given it this loader's specification."""
        module.__spec__ = self.spec


class StandIn(ModuleType):
    """In place of a module until something of it is used."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        functions = {function: called_later(name, function) for function in CALLED_LATER[name]}
        vars(self).update(functions | ANSWERS.get(name, {}))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # Python asks any module for these
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        return getattr(loaded(self.__name__), name)


def loaded(name: str) -> ModuleType:
    """A module of a deferred package, which is loaded if it was not."""
    load(root(name))
    return import_module(name)


def called_later(module: str, name: str) -> Callable[..., Any]:
    """In place of a function or a class of a module, which is loaded when it is called."""

    def called(*inputs: Any, **options: Any) -> Any:
        return getattr(loaded(module), name)(*inputs, **options)

    return called


def root(name: str) -> str:
    """The deferred package that a module is loaded with; the name itself where there is none."""
    packages = (package for package in CALLED_LATER if package not in OF_PARTS)
    return next((package for package in packages if name.startswith(f"{package}.")), name)


# ---- what is asked of modules and can be answered without them, by the names that it has there ----


def allow_in_graph(function: Any) -> Any:
    """A mark for the compiler."""
    return mark("allow_in_graph", function)


def assume_constant_result(function: Any) -> Any:
    """A mark for the compiler."""
    return mark("assume_constant_result", function)


def disable(function: Any = None, recursive: bool = True, *, reason: str | None = None, wrapping: bool = True) -> Any:
    """What the compiler shall leave alone. Without a compiler it is left alone.

    torch itself asks with `wrapping=False` when such a function is first called, and keeps the answer.
    """
    import torch  # late: the caller has imported it

    if COMPILER not in _deferred or not (function is None or isinstance(function, FunctionType)):
        return loaded(COMPILER).disable(function, recursive, reason=reason, wrapping=wrapping)
    return torch._disable_dynamo(function, recursive) if wrapping else mark(KEPT, function)


def graph_break(msg: str = "") -> None:
    """Ends a graph of the compiler, of which there is none."""


def mark(name: str, function: Any) -> Any:
    """Put a mark of the compiler's on a function or a class, as soon as it is loaded."""
    if COMPILER not in _deferred:
        return getattr(loaded(COMPILER), name)(function)
    _marks.append((name, function))
    return function


def put_marks() -> None:
    """Put the marks, and let torch ask again what it has kept."""
    for name, function in _marks:
        if name == KEPT:
            vars(function).pop(KEPT, None)
        else:
            getattr(sys.modules[COMPILER], name)(function)
    _marks.clear()


class OptimizedModule:
    """A compiled module: there is none as long as the compiler is not loaded."""


KEPT = "__dynamo_disable"
"""The attribute of a function in which torch keeps what `disable` gave for it."""
ANSWERS: dict[str, dict[str, Any]] = {
    COMPILER: {
        "allow_in_graph": allow_in_graph,
        "assume_constant_result": assume_constant_result,
        "disable": disable,
        "graph_break": graph_break,
        "eval_frame": SimpleNamespace(OptimizedModule=OptimizedModule),
    },
}
"""Module -> name -> what stands for it."""
