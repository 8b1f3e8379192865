"""Names of classes and functions, the same in every process and in every version that keeps the public name."""

from __future__ import annotations

import os
import sys
import sysconfig
from functools import lru_cache
from typing import Any, Final

_MAIN: Final = ("__main__", "__mp_main__")
DATA_PACKAGES: Final = frozenset(
    {"attr", "attrs", "dibs", "numpy", "pandas", "polars", "pyarrow", "pydantic", "pydantic_core", "scipy", "sklearn"}
    | {"torch"}
)
"""Third-party packages whose classes are known here: their code is no part of anybody's key."""


def module_name(obj: Any) -> str:
    """The module that a class or function was defined in, by one name in all processes.

    What was defined in the program itself has the module `__main__` there and `__mp_main__` in a spawned child: it
    gets the name by which the program would be imported, that of `python -m`, else the stem of its file.
    """
    name = getattr(obj, "__module__", None)
    if not isinstance(name, str):
        return "builtins"
    return _main_name() if name in _MAIN else name


def _main_name() -> str:
    # While a spawned child imports the program, only the second name leads to it; in its parent both do.
    main = sys.modules.get("__mp_main__") or sys.modules.get("__main__")
    spec_name = getattr(getattr(main, "__spec__", None), "name", None)
    if isinstance(spec_name, str) and spec_name not in _MAIN:
        return spec_name
    file = getattr(main, "__file__", None)
    if isinstance(file, str):
        stem = os.path.splitext(os.path.basename(file))[0]
        return stem or "__main__"
    return "__main__"


def full_name(obj: Any) -> str:
    """`module:qualified.name`; for classes of the standard library and of data packages, the public module."""
    module = module_name(obj)
    qualname: str = getattr(obj, "__qualname__", "") or getattr(obj, "__name__", "")
    if "." in module and not is_own(obj) and "." not in qualname:
        # DataFrame lives in pandas.core.frame today; who uses it calls it pandas.DataFrame.
        prefix = ""
        for part in module.split(".")[:-1]:
            prefix = f"{prefix}.{part}" if prefix else part
            if getattr(sys.modules.get(prefix), qualname, None) is obj:
                return f"{prefix}:{qualname}"
    return f"{module}:{qualname}"


def is_own(obj: Any) -> bool:
    """False for what comes with Python or with a data package."""
    name: object = getattr(obj, "__module__", None)
    root = name.partition(".")[0] if isinstance(name, str) else "builtins"
    return root not in DATA_PACKAGES and not _is_standard(root)


@lru_cache(maxsize=1024)
def _is_standard(root: str) -> bool:
    if root in sys.builtin_module_names:
        return True
    if root not in sys.stdlib_module_names:
        return False
    # A file of one's own may be called like a module of the standard library.
    file = getattr(sys.modules.get(root), "__file__", None)
    if not isinstance(file, str):
        return True
    paths = sysconfig.get_paths()
    return any(file.startswith(os.path.join(paths[key], "")) for key in ("stdlib", "platstdlib")) and (
        os.sep + "site-packages" + os.sep not in file
    )
