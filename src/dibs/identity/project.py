"""What belongs to the user's project, as opposed to Python, installed packages and dibs itself."""

from __future__ import annotations

import os
import site
import sys
import sysconfig
import types
from functools import lru_cache
from typing import Any, Final

_INSTALLED: Final = ("site-packages", "dist-packages")


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
    if name in ("__main__", "__mp_main__"):
        return True
    root = name.partition(".")[0]
    if root == "dibs" or root in sys.stdlib_module_names:
        return False
    path = getattr(module, "__file__", None)
    if not isinstance(path, str):
        # A package without __init__ has no file; what has neither file nor path is built in, or made by hand.
        places = list(getattr(module, "__path__", ()))
        return bool(places) and all(_is_project_file(place) for place in places)
    return _is_project_file(path)


def is_project(obj: Any) -> bool:
    """True for a function or class that the project defines."""
    name = getattr(obj, "__module__", None)
    if not isinstance(name, str):
        return False
    module = sys.modules.get(name)
    if module is None:
        code = getattr(obj, "__code__", None)  # made by exec, or arrived by value from elsewhere
        return code is not None and (code.co_filename.startswith("<") or _is_project_file(code.co_filename))
    return is_project_module(module)


def distribution_version(package: str) -> str:
    """The installed version of a package, by the name it is imported or installed by.

    Raises LookupError when there is no such package.
    """
    from importlib.metadata import PackageNotFoundError, packages_distributions, version

    for name in (package, *packages_distributions().get(package, ())):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    raise LookupError(f"no package {package!r} is installed here")
