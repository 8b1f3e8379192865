"""What belongs to the user's project, as opposed to Python, installed packages and dibs; and what it is called."""

from __future__ import annotations

import os
import site
import sys
import sysconfig
import types
from functools import lru_cache
from typing import Any, Final

from dibs.digest import module_name

_INSTALLED: Final = ("site-packages", "dist-packages")
_MAIN: Final = ("__main__", "__mp_main__")


@lru_cache(maxsize=1)
def _standard_folders() -> tuple[str, ...]:
    paths = sysconfig.get_paths()
    return tuple(os.path.realpath(paths[name]) + os.sep for name in ("stdlib", "platstdlib"))


@lru_cache(maxsize=1)
def _installed_folders() -> tuple[str, ...]:
    paths = sysconfig.get_paths()
    folders = {paths["purelib"], paths["platlib"], *site.getsitepackages(), site.getusersitepackages()}
    return tuple(os.path.realpath(folder) + os.sep for folder in folders)


@lru_cache(maxsize=10_000)
def _is_project_file(path: str) -> bool:
    path = os.path.realpath(path)
    if path.startswith(_installed_folders()) or any(f"{os.sep}{name}{os.sep}" in path for name in _INSTALLED):
        return False
    return not path.startswith(_standard_folders())


def is_project_module(module: types.ModuleType | None) -> bool:
    """True for a module of the project: from a file that wasn't installed, or typed in."""
    if module is None:
        return False
    name = module.__name__
    if name in _MAIN or sys.modules.get("__main__") is module:
        return True
    if name.partition(".")[0] == "dibs":
        return False
    path = getattr(module, "__file__", None)
    if isinstance(path, str):
        return not path.startswith("<") and _is_project_file(path)
    # A package without __init__ has no file; what has neither file nor path is built in, frozen, or made by hand.
    places = list(getattr(module, "__path__", ()))
    if places:
        return all(_is_project_file(place) for place in places)
    return name.partition(".")[0] not in sys.stdlib_module_names and getattr(module, "__loader__", None) is None


def is_project(thing: Any) -> bool:
    """True for a function that the project wrote, whatever functools.wraps says about it, and for its classes."""
    code = getattr(thing, "__code__", None)
    if isinstance(code, types.CodeType) and isinstance(thing, types.FunctionType):
        name: object = thing.__globals__.get("__name__")
    else:
        code, name = None, getattr(thing, "__module__", None)
    module = sys.modules.get(name) if isinstance(name, str) else None
    if module is not None and name != "builtins":
        return is_project_module(module)
    # Made by exec, or arrived by value from elsewhere.
    if code is None:
        return False
    path = code.co_filename
    if path.startswith("<"):
        return not path.startswith("<frozen")
    return os.path.isabs(path) and _is_project_file(path)


def is_project_name(name: str) -> bool:
    """Whether a module that may not be loaded yet belongs to the project; nothing is imported to find out."""
    loaded = sys.modules.get(name) or sys.modules.get(name.partition(".")[0])
    if loaded is not None:
        return is_project_module(loaded)
    root = name.partition(".")[0]
    from importlib.util import find_spec

    try:
        spec = find_spec(root)
    except (ImportError, ValueError):
        return False
    if spec is None or root == "dibs":
        return False
    if spec.has_location and spec.origin is not None:
        return _is_project_file(spec.origin)
    places = list(spec.submodule_search_locations or ())
    return bool(places) and all(_is_project_file(place) for place in places)


def name_of(thing: Any, of_code: bool = False) -> str:
    """Module and qualified name, without what tells only that it stands inside a function.

    `of_code`: where its code stands, which functools.wraps hides.
    """
    if of_code:
        where = thing.__globals__.get("__name__") or module_name(thing)
        return f"{module_called(where)}.{thing.__code__.co_qualname}".replace(".<locals>", "")
    qualname = getattr(thing, "__qualname__", None) or type(thing).__qualname__
    return f"{module_name(thing)}.{qualname}".replace(".<locals>", "")


def module_called(name: str) -> str:
    """The name of a module as `module_name` gives it to what is in it."""
    return module_name(types.SimpleNamespace(__module__=name))


def distribution_version(package: str) -> str:
    """The installed version of a package, by the name it is imported or installed by.

    Raises LookupError when there is no such package.
    """
    from importlib.metadata import PackageNotFoundError, packages_distributions, version

    try:
        return version(package)
    except PackageNotFoundError:
        pass
    # To look through all that is installed takes a while.
    for name in packages_distributions().get(package, ()):
        return version(name)
    raise LookupError(f"no package {package!r} is installed here")
