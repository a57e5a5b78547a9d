"""Load objects named on a command line: `package.module:name`, `file.py:name`, and calls of these with literals."""

from __future__ import annotations

import ast
import contextlib
import importlib
import importlib.util
import inspect
import pkgutil
import re
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

from equirelax.errors import ConfigError, EquirelaxError
from equirelax.files import did_you_mean

_TARGET = re.compile(r"(?P<module>.+?):(?P<name>[^\W\d][\w.]*)(?P<call>\(.*\))?", re.DOTALL)


def load(text: str) -> Any:
    """Import what `text` names, and call it if it is a class or a function.

    Args:
        text: `package.module:name` or `path/to/file.py:name`, where the name may have dots. A class or function is called
            without arguments, or with those written after it, `module:build(8, pool="max")`, which must be literals.

    Returns:
        The result of the call. An object that is neither a class nor a function is returned as it is.

    Raises:
        ConfigError: The text, the module, the name or the arguments are wrong, or the module or the call fails.
    """
    match = _TARGET.fullmatch(text.strip())
    if match is None:
        raise ConfigError(
            f"'{text}' names no object: write package.module:name or path/to/file.py:name, such as mynet:build."
        )
    where, name = match["module"], match["name"]
    found: Any = _module(where)
    for part in name.split("."):
        if not hasattr(found, part):
            known = [key for key in dir(found) if not key.startswith("_")]
            owner = f"{where}" if isinstance(found, ModuleType) else type(found).__name__
            raise ConfigError(f"{owner} has no '{part}'.{did_you_mean(part, known)}")
        found = getattr(found, part)
    if inspect.isclass(found) or inspect.isroutine(found):
        return _called(found, f"{where}:{name}", match["call"])
    if match["call"]:
        raise ConfigError(
            f"{where}:{name} is a {type(found).__name__}, which takes no arguments here: leave {match['call']} out."
        )
    return found


@contextlib.contextmanager
def importable(folder: Path) -> Iterator[None]:
    """Make the modules of a folder importable in a block, as `python -m` does for the current folder."""
    before = list(sys.path)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path[:] = before


@contextlib.contextmanager
def failing(words: str) -> Iterator[None]:
    """Turn any error of the user's code into a `ConfigError` that begins with `words` and says where it happened.

    The command's own errors pass through. For an error outside the user's code, such as a failed import, no place is named.
    """
    try:
        yield
    except EquirelaxError:
        raise
    except Exception as error:  # whatever a user's module raises
        raise ConfigError(f"{words}: {type(error).__name__}: {_first_line(error)}{_place(error)}") from error
    except SystemExit as error:
        raise ConfigError(f"{words}: it ended the program (SystemExit: {error}).") from error


def _module(where: str) -> ModuleType:
    """Import the module of a dotted name or a file."""
    if where.endswith(".py") or "/" in where:
        return _from_file(Path(where))
    if not all(part.isidentifier() for part in where.split(".")):
        raise ConfigError(
            f"'{where}' is not the name of a module: write package.module:name or path/to/file.py:name."
        )
    try:
        with failing(f"{where} cannot be imported"):
            return importlib.import_module(where)
    except ConfigError as error:
        missing = error.__cause__
        if (
            isinstance(missing, ModuleNotFoundError)
            and missing.name
            and f"{where}.".startswith(f"{missing.name}.")
        ):
            raise ConfigError(_no_module(where, missing.name)) from missing
        raise


def _no_module(where: str, missing: str) -> str:
    """The message for a missing module, with modules of similar names in the same folder."""
    package, _, last = missing.rpartition(".")
    places = sys.modules[package].__path__ if package in sys.modules else [str(Path.cwd())]
    near = did_you_mean(last, [found.name for found in pkgutil.iter_modules(places)])
    file = Path(f"{where.replace('.', '/')}.py")
    return (
        f"There is no module '{missing}'.{near} The current folder and the installed packages were searched; "
        f"a file is named by its path, such as {file}:name."
    )


def _from_file(path: Path) -> ModuleType:
    if not path.is_file():
        near = (
            did_you_mean(path.name, [p.name for p in path.parent.glob("*.py")])
            if path.parent.is_dir()
            else ""
        )
        raise ConfigError(f"There is no file {path}.{near}")
    name = path.stem if path.stem not in sys.modules else f"{path.stem}_of_{len(sys.modules)}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path} is not a Python file: its name should end in .py.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look up their module
    sys.path.insert(0, str(path.resolve().parent))  # for imports from its own folder
    with failing(f"{path} cannot be run"):
        try:
            spec.loader.exec_module(module)
        except ImportError as error:
            if "relative import" in str(error):
                raise ConfigError(
                    f"{path} imports relative to its package: name it as a module, package.module:name, from the folder "
                    "that holds the package."
                ) from error
            raise
    return module


def _called(function: Any, name: str, call: str | None) -> Any:
    args, kwargs = _arguments(call, name) if call else ([], {})
    try:
        signature = inspect.signature(function)
    except ValueError:  # some functions written in C have no signature
        signature = None
    if signature is not None:
        try:
            signature.bind(*args, **kwargs)
        except TypeError as error:
            bare = signature.replace(return_annotation=signature.empty)
            raise ConfigError(
                f"{name} takes {bare}: {error}. Write the arguments after it, which must be literals, or name a function "
                "without arguments."
            ) from error
    with failing(f"{name}{call or '()'} failed"):
        return function(*args, **kwargs)


def _arguments(call: str, name: str) -> tuple[list[Any], dict[str, Any]]:
    """Read the arguments of a call, which are literals. Nothing in the text is executed."""
    try:
        node = ast.parse(f"f{call}", mode="eval").body
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
            raise ValueError
        args = [ast.literal_eval(arg) for arg in node.args]
        kwargs = {
            str(keyword.arg): ast.literal_eval(keyword.value) for keyword in node.keywords if keyword.arg
        }
        if len(kwargs) < len(node.keywords):
            raise ValueError
    except (SyntaxError, ValueError) as error:
        raise ConfigError(
            f"{name}{call}: arguments should be literals, as in {name}(8, name='max', sizes=[1, 2]). Strings need quotes."
        ) from error
    return args, kwargs


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0].rstrip(".")


def _place(error: BaseException) -> str:
    """The last line outside this package and torch that an error passed through."""
    lines = [frame for frame in _frames(error.__traceback__) if not _is_machinery(frame.filename)]
    if isinstance(error, SyntaxError):
        return f" ({error.filename}, line {error.lineno})."
    return f" ({lines[-1].filename}, line {lines[-1].lineno})." if lines else "."


def _frames(trace: TracebackType | None) -> Sequence[traceback.FrameSummary]:
    return traceback.extract_tb(trace)


def _is_machinery(file: str) -> bool:
    own = Path(__file__).parents[1]
    return (
        file.startswith("<frozen")
        or Path(file).is_relative_to(own)
        or "/torch/" in file
        or "/importlib/" in file
    )
