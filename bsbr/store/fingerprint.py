"""What a measuring function depends on, found by following what it reaches, as one hash.

A cell is kept as long as the code that measured it means the same, so what is hashed of code is its syntax tree
without docstrings: comments, wording and layout may change.

From a function of a notebook or a test, the globals that it loads and the variables that it closes over are followed:
other functions (through caches, partials and wrappers), classes, settings by their values, models by their weights.
From there into the library the step is a whole module, with every module of the project that it imports, since what a
module registers or dispatches cannot be told from a name. The rooms that only keep and show numbers are left out.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import dis
import enum
import functools
import hashlib
import importlib
import importlib.util
import inspect
import json
import sys
import textwrap
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from pathlib import Path, PurePath
from typing import Any

from bsbr.store.provenance import ROOT, sha256, version_of

PACKAGE = "bsbr"
RECORDING = ("bsbr.store", "bsbr.show", "bsbr.claims")  # they keep, judge and show numbers, and measure nothing
PLAIN = (type(None), bool, int, float, complex, str, bytes, PurePath, range, slice, types.EllipsisType)


class UnseenError(TypeError):
    """Something that a measurement depends on has no content that can be hashed."""


def of(function: Callable[..., Any]) -> str:
    """One SHA-256 over all that a measuring function depends on.

    An object of a class of its own is seen if it is a dataclass, or has a method `fingerprint()` that returns a string.

    Args:
        function: measures something.

    Raises:
        UnseenError: it reaches an object whose content cannot be seen; the message says which and what to do.

    Examples:
        >>> from bsbr.store import fingerprint
        >>> factor = 2
        >>> def measure(n):
        ...     return factor * n
        >>> before = fingerprint.of(measure)
        >>> factor = 3  # what the function reads is part of it
        >>> fingerprint.of(measure) == before
        False
    """
    return sha256("\n".join(f"{name}: {found}" for name, found in sorted(parts(function).items())))


def parts(function: Callable[..., Any]) -> dict[str, str]:
    """What the hash of `of` is made of, by name: to see why a cell was measured again.

    Args:
        function: measures something.

    Examples:
        >>> from bsbr.store import fingerprint
        >>> factor = 2
        >>> def measure(n):
        ...     return factor * n
        >>> list(fingerprint.parts(measure))
        ['factor', 'measure']
    """
    walk = _Walk()
    walk.add(getattr(function, "__name__", "measure"), function)
    return walk.found


class _Walk:
    def __init__(self) -> None:
        self.found: dict[str, str] = {}
        self._seen: dict[int, str] = {}  # of what has been described, and so cannot go round in a circle
        self._alive: list[Any] = []  # an id is an object's own only while it lives

    def add(self, name: str, value: Any) -> None:
        self.found[name] = self.describe(value, name)

    def describe(self, value: Any, path: str) -> str:
        """The content of a value as text: the same in every process, without addresses."""
        if isinstance(value, PLAIN) and not isinstance(value, enum.Enum):
            return _short(f"{type(value).__name__} {_below_root(value) if isinstance(value, PurePath) else value!r}")
        if id(value) not in self._seen:
            self._seen[id(value)] = f"<{type(value).__name__} further up>"
            self._alive.append(value)
            self._seen[id(value)] = _short(self._content(value, path))
        return self._seen[id(value)]

    def _content(self, value: Any, path: str) -> str:
        kind = type(value)
        if isinstance(value, types.ModuleType):
            return self._module(value.__name__)
        if isinstance(value, type):
            return self._class(value)
        if isinstance(value, functools.partial):
            return self.describe((value.func, value.args, value.keywords), path)
        if isinstance(value, types.MethodType):
            return self.describe((value.__func__, value.__self__), path)
        if callable(value) and hasattr(value, "__wrapped__"):  # a cache, or what functools.wraps has made
            outer = self._wrapper(value, path) if isinstance(value, types.FunctionType) else kind.__name__
            return f"{outer} around {self.describe(value.__wrapped__, path)}"
        if isinstance(value, types.FunctionType):
            return self._function(value, path)
        if isinstance(value, types.BuiltinFunctionType | types.MethodDescriptorType | types.WrapperDescriptorType):
            return f"built-in {value.__qualname__}"
        if isinstance(value, enum.Enum):
            return f"{self.describe(kind, path)}.{value.name}"
        if callable(getattr(kind, "fingerprint", None)):
            return f"{self.describe(kind, path)} {value.fingerprint()}"
        if isinstance(value, Mapping):
            items = ((self.describe(key, path), self.describe(one, f"{path}[{key!r}]")) for key, one in value.items())
            return f"{kind.__name__} {{{', '.join(f'{key}: {one}' for key, one in items)}}}"
        if isinstance(value, Set):
            return f"{kind.__name__} {sorted(self.describe(one, path) for one in value)}"
        if isinstance(value, list | tuple):
            return f"{kind.__name__} [{', '.join(self.describe(one, f'{path}[{n}]') for n, one in enumerate(value))}]"
        if dataclasses.is_dataclass(value):
            fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
            return f"{self.describe(kind, path)} {self.describe(fields, path)}"
        return self._foreign(value, path)

    # -- Code -------------------------------------------------------------------------------------

    def _function(self, function: types.FunctionType, path: str) -> str:
        module = function.__module__ or ""
        if _in_package(module) or not _is_ours(module):
            return f"{self._module(module)}.{function.__qualname__}"
        self._alive.append(function)
        tree = _tree(function)
        self._imports(tree, module)
        for name in sorted(_loaded(function.__code__)):
            if name in function.__globals__:
                self._global(name, function.__globals__[name], tree)
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            with contextlib.suppress(ValueError):  # a variable that has no value yet
                self._global(name, cell.cell_contents, tree, f"{path} closes over {name}")
        shown = self.describe((function.__defaults__, function.__kwdefaults__), f"a default of {path}")
        return f"{_meaning(tree) if tree.body else _bytecode(function.__code__)} with {shown}"

    def _wrapper(self, function: types.FunctionType, path: str) -> str:
        """What a decorator has put around a function; what another package's closes over stands in the source."""
        home = str(function.__globals__.get("__name__", ""))
        return self._function(function, path) if _is_ours(home) else f"{self._module(home)} {function.__code__.co_name}"

    def _global(self, name: str, value: Any, tree: ast.AST, path: str = "") -> None:
        """What a function uses by name; of a package of the project only the modules whose attributes are used."""
        if isinstance(value, types.ModuleType) and _in_package(value.__name__) and hasattr(value, "__path__"):
            for reached in _attributes(tree, name, value):
                self.add(f"{name} reaches {reached.__name__}", reached)
        elif path or name not in self.found:
            self.add(path or name, value)

    def _class(self, kind: type) -> str:
        if not _is_ours(kind.__module__) or _in_package(kind.__module__):
            return f"{self._module(kind.__module__)}.{kind.__qualname__}"
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(kind)))
        except (OSError, TypeError, SyntaxError):
            raise UnseenError(
                f"the source of class {kind.__qualname__} cannot be read; define it in a module"
            ) from None
        self._imports(tree, kind.__module__)
        for method in vars(kind).values():
            function = getattr(method, "__func__", getattr(method, "fget", method))
            if isinstance(function, types.FunctionType) and function.__module__ == kind.__module__:
                for name in sorted(_loaded(function.__code__)):
                    if name in function.__globals__:
                        self._global(name, function.__globals__[name], tree)
        bases = [self.describe(base, kind.__qualname__) for base in kind.__bases__ if base is not object]
        return f"{_meaning(tree)} on {bases}"

    def _module(self, name: str) -> str:
        """A module's name; what is in it, and in what it imports, joins the parts."""
        if not _in_package(name):
            top = name.partition(".")[0]
            if top in sys.stdlib_module_names or top in ("builtins", "__main__", ""):
                return name
            return f"{name} {version_of(top)}"
        if name.startswith(RECORDING) or name == PACKAGE or name in self.found:
            return name
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            return name
        package = name if spec.submodule_search_locations else name.rpartition(".")[0]
        self.found[name], modules = _said(Path(spec.origin).read_text(encoding="utf-8"), package)
        for module in modules:
            self._module(module)
        for read in getattr(importlib.import_module(name), "READS", ()):  # data files that a module stands on
            self.found[f"{name} reads {Path(read).name}"] = sha256(Path(read).read_bytes())
        return name

    def _imports(self, tree: ast.AST, package: str) -> None:
        for module in _imported(tree, package):
            self._module(module)

    # -- What others make -------------------------------------------------------------------------

    def _foreign(self, value: Any, path: str) -> str:
        """Objects of other packages, by content; only if it is already imported can there be one of a package."""
        kind = f"{type(value).__module__}.{type(value).__qualname__}"
        if (torch := sys.modules.get("torch")) is not None:
            if isinstance(value, torch.nn.Module):
                return self._torch_module(value, path)
            if isinstance(value, torch.Tensor):
                return f"{kind} {tuple(value.shape)} {value.dtype} {_tensor_hash(value)}"
            if isinstance(value, torch.device | torch.dtype | torch.Size):
                return f"{kind} {value}"
        if (numpy := sys.modules.get("numpy")) is not None and isinstance(value, numpy.ndarray | numpy.generic):
            array = numpy.ascontiguousarray(value)
            if array.dtype.hasobject:
                return self.describe(array.tolist(), path)
            return f"{kind} {array.shape} {array.dtype} {hashlib.sha256(array.tobytes()).hexdigest()}"
        pandas = sys.modules.get("pandas")
        if pandas is not None and isinstance(value, pandas.DataFrame | pandas.Series | pandas.Index):
            return f"{kind} {sha256(value.to_json() if not isinstance(value, pandas.Index) else str(value.tolist()))}"
        if hasattr(value, "to_diff_dict"):  # a config of transformers
            return f"{kind} {_config(value)}"
        if hasattr(value, "backend_tokenizer"):  # a tokenizer of transformers
            return f"{kind} {sha256(value.backend_tokenizer.to_str())}"
        if kind == "tokenizers.Tokenizer":
            return f"{kind} {sha256(value.to_str())}"
        raise UnseenError(
            f"{path} is a {kind}, whose content cannot be seen, so a change of it would keep old measurements; make it "
            "within the measuring function, give the function a plain setting instead, or give the class a method "
            "fingerprint() that returns a string"
        )

    def _torch_module(self, model: Any, path: str) -> str:
        """Classes, settings and weights of a model."""
        settings = []
        for name, part in model.named_modules():
            plain = {key: one for key, one in vars(part).items() if isinstance(one, PLAIN) and not key.startswith("_")}
            settings.append((name, self.describe(type(part), path), self.describe(plain, path)))
        config: Any = getattr(model, "config", None)
        if config is not None:
            settings.append(("config", self.describe(config, f"{path}.config"), ""))
        weights = hashlib.sha256()
        for name, tensor in sorted(model.state_dict().items()):
            weights.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} {_tensor_hash(tensor)}".encode())
        return f"{sha256(repr(settings))} {weights.hexdigest()}"


def _config(config: Any) -> str:
    """The settings of a model of transformers; where it was read from, and by which version, is none."""
    no_setting = ("_name_or_path", "transformers_version")
    kept = {name: value for name, value in config.to_diff_dict().items() if name not in no_setting}
    return json.dumps(kept, sort_keys=True, default=str)


def _tensor_hash(tensor: Any) -> str:
    import torch

    data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8) if tensor.numel() else tensor.detach().cpu()
    return hashlib.sha256(memoryview(data.numpy())).hexdigest()


# -- Reading code ---------------------------------------------------------------------------------


def _short(text: str) -> str:
    """A text, or the hash of a long one."""
    return text if len(text) <= 512 else sha256(text)


def _tree(code: Callable[..., Any]) -> ast.Module:
    """The syntax tree of a function or class; an empty one where its source is not to be had alone, as of a lambda."""
    if code.__name__ == "<lambda>":
        return ast.Module([], [])
    try:
        return ast.parse(textwrap.dedent(inspect.getsource(code)))
    except (OSError, TypeError, SyntaxError):
        return ast.Module([], [])


def _bytecode(code: types.CodeType) -> str:
    """What a function without a source does: its instructions, names and constants."""
    inner = [_bytecode(one) if isinstance(one, types.CodeType) else repr(one) for one in code.co_consts]
    return f"{code.co_code.hex()} {code.co_names} {inner}"


def _in_package(module: str) -> bool:
    return module == PACKAGE or module.startswith(f"{PACKAGE}.")


def _is_ours(module: str) -> bool:
    """Whether a module is the project's or its user's, such as a notebook, a test or a script; not an installed one."""
    top = module.partition(".")[0]
    if module == "__main__" or _in_package(module):
        return True
    return bool(top) and top not in sys.stdlib_module_names and top != "builtins" and not version_of(top)


def _loaded(code: types.CodeType) -> set[str]:
    """The globals that a function loads, its nested functions and comprehensions included."""
    here = {found.argval for found in dis.get_instructions(code) if found.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    inner = (constant for constant in code.co_consts if isinstance(constant, types.CodeType))
    return here.union(*map(_loaded, inner))


def _attributes(tree: ast.AST, name: str, package: types.ModuleType) -> Iterator[types.ModuleType]:
    """The modules that `name.a.b` in a tree reaches, where `name` is a package: as deep as they are modules."""
    for node in ast.walk(tree):
        chain: list[str] = []
        while isinstance(node, ast.Attribute):
            chain.insert(0, node.attr)
            node = node.value
        if not (isinstance(node, ast.Name) and node.id == name):
            continue
        found: Any = package
        for attribute in chain:
            deeper = getattr(found, attribute, None)
            if not isinstance(deeper, types.ModuleType):
                home = inspect.getmodule(deeper)
                found = home if home is not None and _in_package(home.__name__) else found
                break
            found = deeper
        yield found


@functools.lru_cache(maxsize=1024)
def _said(text: str, package: str) -> tuple[str, tuple[str, ...]]:
    """What the text of a module means, and the modules of the project that it imports: each text is read once."""
    tree = ast.parse(text)
    modules = tuple(_imported(tree, package))
    return _meaning(tree), modules


def _imported(tree: ast.AST, package: str) -> Iterator[str]:
    """The modules of the project that a tree imports anywhere in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if _in_package(alias.name))
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:
                parents = package.split(".")
                module = ".".join(filter(None, [*parents[: len(parents) - node.level + 1], module]))
            if _in_package(module):
                yield from _homes(module, [alias.name for alias in node.names])


def _homes(module: str, names: Iterable[str]) -> Iterator[str]:
    """A module, and for each name from it the submodule of that name, or the module that defines it."""
    if module != PACKAGE:
        yield module
    for name in names:
        if _is_module(f"{module}.{name}"):
            yield f"{module}.{name}"
        elif module == PACKAGE:  # its public names come from elsewhere
            home = getattr(getattr(importlib.import_module(PACKAGE), name, None), "__module__", None)
            yield from [home] if home else []


@functools.cache
def _is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def _meaning(tree: ast.AST) -> str:
    """A syntax tree as text, without docstrings."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            match node.body:
                case [ast.Expr(value=ast.Constant(value=str())), *rest]:
                    node.body = rest
    return ast.dump(tree)


def _below_root(path: PurePath) -> str:
    """A path without where the checkout lies."""
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.name
