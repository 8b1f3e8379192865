"""`dibs explain KEY`: what a key is made of, and what changed; `dibs retag FUNCTION`: accept an edit of the code."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from dibs.cli.opening import existing
from dibs.cli.printing import Out, say, shown
from dibs.errors import SettingsError
from dibs.identity import Code
from dibs.memoize import AsyncMemoized, Memoized, Version, explain

if TYPE_CHECKING:
    from dibs.cli.parser import Commands


def add(commands: Commands, shared: argparse.ArgumentParser) -> None:
    parser = commands.add_parser(
        "explain",
        parents=[shared],
        help="what a key is made of, and what changed since the nearest other entry",
        description="Show the ingredients of a stored key, and how it differs from the nearest other entry of the "
        "same function.  For a call that is not stored, ask the function: print(f.explain(...)).",
    )
    parser.add_argument("key", metavar="KEY")
    parser.set_defaults(run=run_explain)
    parser = commands.add_parser(
        "retag",
        parents=[shared],
        help="accept an edit: what the old code computed counts for the new",
        description="Let the entries of an older version of a memoized function count for a newer one.  Without "
        "--from and --to only the known versions are listed.  TARGET is the name that the function's keys begin with; "
        "or package.module:function or file.py:function, which is imported, and stands for the code as it is now.",
    )
    parser.add_argument("target", metavar="TARGET")
    parser.add_argument("--from", dest="old", metavar="DIGEST", help="the version whose entries count (its beginning)")
    parser.add_argument("--to", dest="new", metavar="DIGEST", help="the version they count for (its beginning)")
    parser.set_defaults(run=run_retag)


def run_explain(options: argparse.Namespace, out: Out) -> int:
    with existing(options) as place:
        found = explain(place.cache._versions, options.key, None)
    if out.json:
        data = found._asdict()
        data["changes"] = [change._asdict() for change in found.changes]
        out.data(data)
    else:
        for line in str(found).splitlines():
            out.line(line)
    return 0 if found.state == "hit" else 1


def run_retag(options: argparse.Namespace, out: Out) -> int:
    writes = options.new is not None or ":" in options.target
    with existing(options, writes=writes) as place:
        versions = place.cache._versions
        if ":" in options.target:
            if options.new is not None:
                raise SettingsError(f"--to is not needed with {options.target}: its code as it is now is meant")
            code = _imported(options.target)
            old = _one([v for v in versions.all(code.name) if v.digest != code.digest], options.old, code.name)
        else:
            known = versions.all(options.target)
            if options.old is None or options.new is None:
                return _list(options, known, out)
            new = _one(known, options.new, options.target)
            old = _one([version for version in known if version.digest != new.digest], options.old, options.target)
            code = Code(new.function, new.digest, new.ingredients, new.notes)
        versions.retag(code, old)
    if out.json:
        out.data({"function": code.name, "from": old.digest, "to": code.digest})
    else:
        out.line(f"{shown(code.name)}: what {old.digest[:12]} computed counts for {code.digest[:12]} now")
    return 0


def _list(options: argparse.Namespace, known: list[Version], out: Out) -> int:
    if out.json:
        out.data([version._asdict() for version in known])
        return 0 if known else 1
    if not known:
        say(f"nothing was computed by a function named {options.target!r} in this cache")
        return 1
    rows = [
        (known_one.digest[:12], _time(known_one.at), (known_one.stands_for or "")[:12], _source(known_one))
        for known_one in known
    ]
    out.table(("VERSION", "FIRST SEEN", "STANDS FOR", "SOURCE"), rows)
    say(f"to accept an edit: dibs retag {options.target} --from OLD --to NEW")
    return 0


def _time(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S")


def _source(version: Version) -> str:
    return version.ingredients.get("source", ("", ""))[1]


def _one(versions: list[Version], beginning: str | None, function: str) -> Version:
    found = [version for version in versions if version.digest.startswith(beginning or "")]
    if beginning is None and found:
        return found[0]
    if len(found) == 1:
        return found[0]
    known = ", ".join(version.digest[:12] for version in versions) or "none"
    problem = "no version" if not found else "more than one version"
    raise SettingsError(f"{problem} of {function} begins with {beginning or ''!r}; known are: {known}")


def _imported(target: str) -> Code:
    """The code of "package.module:function" or "file.py:function", as it is now."""
    where, _, path = target.rpartition(":")
    try:
        module: Any = _module(where)
        found = module
        for part in path.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, OSError) as error:
        raise SettingsError(f"{target} can't be imported: {error}") from error
    if not isinstance(found, Memoized | AsyncMemoized):
        raise SettingsError(f"{target} is no memoized function, but {type(found).__name__}")
    return found._recipe.identity.code()


def _module(where: str) -> Any:
    if not where.endswith(".py"):
        sys.path.insert(0, os.getcwd())
        return importlib.import_module(where)
    # Under the name that its functions have when it runs as a program: that of the file.
    name = os.path.basename(where).removesuffix(".py")
    sys.path.insert(0, os.path.dirname(os.path.abspath(where)))
    spec = importlib.util.spec_from_file_location(name, where)
    if spec is None or spec.loader is None:
        raise ImportError(f"{where} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


