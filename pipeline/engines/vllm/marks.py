"""What vLLM writes into classes and modules of other libraries, taken off while it does not run.

vLLM runs some architectures through transformers' own classes and changes these in place: others
can then make no model any more. Promises: a library is as it was before vLLM as soon as no engine
of it runs here; the next engine finds again what vLLM writes only once, when it is imported.
Imports nothing of vLLM.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import FunctionType, MethodType, ModuleType
from typing import Any

WRITER = "vllm"

LIBRARIES = ("transformers", "torch", "accelerate", "peft", "deepspeed", "tokenizers")
"""Packages that are looked at, and those whose names begin with one and `_`."""

REGISTERS = ("transformers",)
"""Packages whose registers, dictionaries of modules and of their objects, are looked at too."""

_ABSENT = object()


@dataclass(frozen=True)
class _Space:
    """Names of a module, a class or a register, and what they stood for."""

    owner: Any
    before: dict[Any, Any]
    bases: tuple[type, ...] = ()

    def put(self, name: Any, value: object) -> None:
        """Let a name stand for a value, or for nothing."""
        if isinstance(self.owner, dict):
            self.owner.pop(name, None)
            if value is not _ABSENT:
                self.owner[name] = value
        elif value is _ABSENT:
            delattr(self.owner, name)
        else:
            setattr(self.owner, name, value)

    def changed(self) -> dict[Any, Any]:
        """Return the names that stand for something else now, and for what."""
        now = self.owner if isinstance(self.owner, dict) else vars(self.owner)
        return {k: v for k, v in list(now.items()) if self.before.get(k, _ABSENT) is not v}


class Marks:
    """What vLLM has written, and what stood there, for all of its engines in this process."""

    def __init__(self) -> None:
        """Begin: vLLM has written nothing."""
        self._running = 0
        self._spaces: list[_Space] = []
        self._theirs: list[tuple[_Space, Any, Any]] = []
        self._witness = _Witness(self._look)

    def begin(self) -> None:
        """Note what stands where vLLM may write: an engine starts. Give it what it wrote before."""
        self._running += 1
        if self._running > 1:
            return
        for module in list(sys.modules.values()):
            self._look(module)
        sys.meta_path.insert(0, self._witness)
        for space, name, value in self._theirs:
            space.put(name, value)

    def end(self) -> None:
        """Take off what vLLM has written: an engine has ended. Nothing is done while others run."""
        self._running -= 1
        if self._running:
            return
        sys.meta_path.remove(self._witness)
        # classes first: until then one may look as if it were vLLM's own
        for space in self._spaces:
            if space.bases and space.owner.__bases__ != space.bases:
                _restore_class(space)
        for space in self._spaces:
            for name, value in space.changed().items():
                if _is_theirs(value):
                    self._take_off(space, name, value)
        self._spaces.clear()
        _forget_unseen()

    def _take_off(self, space: _Space, name: Any, value: Any) -> None:
        with suppress(AttributeError, TypeError):  # a name that cannot be written
            space.put(name, space.before.get(name, _ABSENT))
            known = [(s.owner, n) for s, n, _ in self._theirs]
            if not any(owner is space.owner and n == name for owner, n in known):
                self._theirs.append((space, name, value))

    def _look(self, module: ModuleType) -> None:
        """Note what a module, its classes and its registers hold."""
        name = getattr(module, "__name__", None)
        if not (isinstance(name, str) and _is_watched(name)):
            return
        names = dict(vars(module))
        self._spaces.append(_Space(module, names))
        own = [v for v in names.values() if _is_a(v, type) and vars(v).get("__module__") == name]
        self._spaces += [_Space(cls, dict(vars(cls)), cls.__bases__) for cls in own]
        if name.startswith(REGISTERS):
            self._spaces += [_Space(each, dict(each)) for each in _registers(names, own)]


class _Witness(MetaPathFinder):
    """Looks at each module that is imported while vLLM runs, before vLLM can write into it."""

    def __init__(self, look: Callable[[ModuleType], None]) -> None:
        self._look = look

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return what the other finders find, with a loader that has the module looked at."""
        if not _is_watched(fullname):
            return None
        for finder in list(sys.meta_path):
            find = None if isinstance(finder, _Witness) else getattr(finder, "find_spec", None)
            spec: ModuleSpec | None = find(fullname, path, target) if find else None
            if spec is not None:
                self._attend(spec)
                return spec
        return None

    def _attend(self, spec: ModuleSpec) -> None:
        loader: Any = spec.loader
        run = getattr(loader, "exec_module", None)
        if run is None:
            return

        def run_and_look(module: ModuleType) -> None:
            run(module)
            self._look(module)

        with suppress(AttributeError):  # a loader without attributes of its own: built-in modules
            loader.exec_module = run_and_look


def _is_watched(name: str) -> bool:
    top = name.partition(".")[0]
    return any(top == library or top.startswith(f"{library}_") for library in LIBRARIES)


def _registers(names: dict[str, Any], own: list[type]) -> Iterator[dict[Any, Any]]:
    """Yield the dictionaries of a module, of its classes, and of objects that it holds."""
    places: list[Any] = [names, *(vars(cls) for cls in own)]
    for value in names.values():
        if not isinstance(value, type | ModuleType) and _is_watched(type(value).__module__):
            with suppress(TypeError):  # an object without attributes
                places.append(vars(value))
    for place in places:
        yield from (each for each in place.values() if type(each) is dict)


def _restore_class(space: _Space) -> None:
    """Give a class its bases and attributes back."""
    space.owner.__bases__ = space.bases
    for name in space.changed():
        with suppress(AttributeError, TypeError):  # such as __dict__, which is not the class's own
            space.put(name, space.before.get(name, _ABSENT))


def _is_theirs(value: Any) -> bool:
    """Return whether a value is of vLLM: a class, function or object that its code defines."""
    if _is_a(value, staticmethod, classmethod, MethodType):
        value = value.__func__
    elif _is_a(value, property):
        value = value.fget
    elif _is_a(value, partial):
        value = value.func
    if _is_a(value, FunctionType):  # one that wraps another takes over its name, not this
        module = value.__globals__.get("__name__")
    else:
        module = vars(value if _is_a(value, type) else type(value)).get("__module__")
    return isinstance(module, str) and module.partition(".")[0] == WRITER


def _is_a(value: object, *kinds: type) -> bool:
    """Return whether a value is of a kind, without asking it: some import things to answer."""
    return issubclass(type(value), kinds)


def _forget_unseen() -> None:
    """Let modules be read anew whose classes vLLM has changed before anybody could look at them.

    So it is with a model's own code, which transformers loads without the import system.
    """
    for name, module in list(sys.modules.items()):
        if name.startswith("transformers_modules.") and isinstance(module, ModuleType):
            found = [v for v in vars(module).values() if isinstance(v, type)]
            if any(_is_theirs(base) for cls in found for base in cls.__bases__):
                del sys.modules[name]


MARKS = Marks()
"""Those of this process."""
