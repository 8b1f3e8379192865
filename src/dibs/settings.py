"""Settings: from arguments, `DIBS_*` variables, `dibs.toml` and `[tool.dibs]`, in this order, checked on the way in."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Final, Literal, NamedTuple, Self

from dibs.errors import SettingsError
from dibs.liveness import BEATS_PER_TTL, TRUST_PER_TTL, TTL_MAX_S, TTL_MIN_S
from dibs.stores import scheme_of


class Unset:
    """The default of an argument that wasn't given, where None means something."""

    def __repr__(self) -> str:
        return "…"


UNSET: Final[Any] = Unset()


class Secrets:
    """What entries are signed with, newest first; never shown, and never sent along with a pickled cache."""

    __slots__ = ("values",)

    def __init__(self, values: tuple[bytes, ...]) -> None:
        self.values = values

    def __repr__(self) -> str:
        return f"<{len(self.values)} secret(s)>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secrets) and self.values == other.values

    def __hash__(self) -> int:
        return hash(len(self.values))

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self  # a copy in the same process keeps it

    def __reduce__(self) -> tuple[Any, ...]:
        return _secret_of_this_process, ()


def _secret_of_this_process() -> Secrets:
    """Stands in a pickle in the place of the secret, which the receiver must have of its own."""
    found = gather({})[1].secret
    if found is None:
        raise SettingsError(
            "this cache was opened with a secret, which is never sent along: set DIBS_SECRET where it is used"
        )
    return found


class Settings(NamedTuple):
    """Everything about a cache but where it is; `open` says what each means.  Times are in seconds."""

    ttl_s: float = 60.0
    beat_s: float | None = None
    hold_max_s: float | None = None
    wait_s: float | None = None
    failures_max: int = 3
    deaths_max: int = 10
    retry_after_s: float = 60.0
    codec: str = "auto"
    allow_pickle: bool | None = None
    secret: Secrets | None = None
    heartbeat: Literal["thread", "process", "manual"] = "thread"
    on_unavailable: Literal["raise", "compute"] = "raise"
    read_only: bool = False
    disable: bool = False

    @property
    def beat(self) -> float:
        """Seconds between two beats."""
        return beat_of(self.ttl_s, self.beat_s)


_FLOATS: Final = ("ttl_s", "beat_s", "hold_max_s", "wait_s", "retry_after_s")
_INTEGERS: Final = ("failures_max", "deaths_max")
_FLAGS: Final = ("allow_pickle", "read_only", "disable")
_SECRET_SIZE_MIN: Final = 16
"""Bytes; shorter ones could be guessed from a signature."""
_CHOICES: Final[dict[str, tuple[str, ...]]] = {
    "heartbeat": ("thread", "process", "manual"),
    "on_unavailable": ("raise", "compute"),
}
_LATER: Final[dict[str, str]] = {
    "local": "tiers on this host",
    "fresh_s": "tiers on this host",
    "values": "a second store for large values",
}
"""Settings of the documented face that this version does not have yet: asking for one is an error, never ignored."""


def beat_of(ttl_s: float, beat_s: float | None) -> float:
    """Seconds between two beats: a sixth of the ttl unless said otherwise."""
    return ttl_s / BEATS_PER_TTL if beat_s is None else beat_s


def gather(arguments: Mapping[str, Any], environ: Mapping[str, str] = os.environ) -> tuple[str | None, Settings]:
    """Return the url (None: nowhere given) and the settings.

    `arguments` are those that were given; the rest comes from `DIBS_*` variables, then from the nearest
    `dibs.toml` or `pyproject.toml` with `[tool.dibs]` at or above the working directory.  A relative path in the `url`
    of a file counts from where the file is; in an argument or in `DIBS_URL` from the working directory.
    Raises SettingsError, which names the setting and where it stands.
    """
    found: dict[str, Any] = {}
    for source, values in (_from_files(), _from_environment(environ), ("an argument", dict(arguments))):
        for name, value in values.items():
            found[name] = _checked(name, value, source)
    url = found.pop("url", None)
    settings = Settings(**found)
    check_terms(settings.ttl_s, settings.beat_s, settings.hold_max_s)
    return url, settings


def check_terms(ttl_s: float, beat_s: float | None, hold_max_s: float | None) -> None:
    """Raise SettingsError when a holder could not live by these times."""
    if not TTL_MIN_S <= ttl_s <= TTL_MAX_S:
        raise SettingsError(f"ttl_s = {ttl_s!r} must be between {TTL_MIN_S} and {TTL_MAX_S:g} seconds")
    beat = beat_of(ttl_s, beat_s)
    if not 0 < beat <= ttl_s * TRUST_PER_TTL / 2:
        raise SettingsError(
            f"beat_s = {beat!r} must be above 0 and at most a third of ttl_s ({ttl_s:g}): a holder that missed one "
            "beat would lose its hold"
        )
    if hold_max_s is not None and hold_max_s <= 0:
        raise SettingsError(f"hold_max_s = {hold_max_s!r} must be above 0, or None for no limit")


def _from_environment(environ: Mapping[str, str]) -> tuple[str, dict[str, Any]]:
    ours = {n: v for n, v in environ.items() if n.startswith("DIBS_") and n not in _FOREIGN_VARIABLES}
    return "a DIBS_ variable", {name.removeprefix("DIBS_").lower(): _parsed(name, text) for name, text in ours.items()}


_FOREIGN_VARIABLES: Final = ("DIBS_RUNTIME_DIR", "DIBS_MINISTACK_PYTHON", "DIBS_OTHER_PYTHON", "DIBS_LOCK_GENERATION")
"""Not settings: where the runtime's files are, what the tests need, and what `dibs lock` tells its command."""


def _parsed(variable: str, text: str) -> Any:
    """A variable's text as the type that its setting has."""
    name = variable.removeprefix("DIBS_").lower()
    if name == "secret":
        return text.split()  # several, newest first
    try:
        if name in _FLOATS:
            return None if text.lower() in ("", "none") else float(text)
        if name in _INTEGERS:
            return int(text)
    except ValueError:
        raise SettingsError(f"{variable}={text!r} (environment): a number was expected") from None
    if name in _FLAGS:
        if text.lower() in ("1", "true", "yes", "on"):
            return True
        if text.lower() in ("0", "false", "no", "off", ""):
            return False
        raise SettingsError(f"{variable}={text!r} (environment): expected 1 or 0")
    return text


def _from_files() -> tuple[str, dict[str, Any]]:
    folder = os.getcwd()
    while True:  # ends at the root
        for name in ("dibs.toml", "pyproject.toml"):
            path = os.path.join(folder, name)
            if os.path.isfile(path):
                table = _table_in(path, name)
                if table is not None:
                    return path, _with_url_from(path, table)
        if folder == os.path.dirname(folder):
            return "", {}
        folder = os.path.dirname(folder)


def _with_url_from(path: str, table: dict[str, Any]) -> dict[str, Any]:
    """The settings in the file at `path`, from whose folder a relative `url` counts."""
    url = table.get("url")
    if not isinstance(url, str) or not url:
        return table
    try:
        plain = not scheme_of(url)
    except SettingsError as error:
        raise SettingsError(f"url ({path}): {error}") from None
    return {**table, "url": os.path.join(os.path.dirname(path), os.path.expanduser(url))} if plain else table


def _table_in(path: str, name: str) -> dict[str, Any] | None:
    """The settings in a file; None when it has none."""
    import tomllib

    try:
        with open(path, "rb") as file:
            content = tomllib.load(file)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        if name == "pyproject.toml":
            return None  # somebody else's file; whoever owns it will complain
        raise SettingsError(f"{path}: {error}") from error
    tool = content.get("tool")
    table = content if name == "dibs.toml" else tool.get("dibs") if isinstance(tool, dict) else None
    if table is not None and not isinstance(table, dict):
        raise SettingsError(f"{path}: [tool.dibs] must be a table of settings, not {table!r}")
    return table


def _checked(name: str, value: Any, source: str) -> Any:
    where = f"{name} = {'…' if name == 'secret' else repr(value)} ({source})"
    if name == "url":
        if value is not None and not isinstance(value, str):
            raise SettingsError(f"{where}: expected the URL or the path of a store")
    elif name == "secret":
        return _secrets(value, source)  # an error about it must not show it
    elif name == "codec":
        if not isinstance(value, str) or not value:
            raise SettingsError(f"{where}: expected the name of a codec, or 'auto'")
    elif name in _LATER:
        raise SettingsError(f"{name} ({source}): this version of dibs has no {_LATER[name]} yet; leave {name} out")
    elif name in _FLOATS:
        optional = Settings._field_defaults[name] is None
        if not (optional and value is None) and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise SettingsError(f"{where}: expected a number of seconds{' or None' if optional else ''}")
        if value is not None and not 0 <= value < float("inf"):
            raise SettingsError(f"{where}: expected a number of seconds that is not negative")
    elif name in _INTEGERS:
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise SettingsError(f"{where}: expected a whole number from 1 on")
    elif name in _FLAGS:
        if not isinstance(value, bool) and not (name == "allow_pickle" and value is None):
            raise SettingsError(f"{where}: expected True or False")
    elif name in _CHOICES:
        if value not in _CHOICES[name]:
            raise SettingsError(f"{where}: expected one of {', '.join(map(repr, _CHOICES[name]))}")
    else:
        known = ", ".join(["url", *Settings._fields])
        # Without the value: a misspelt secret is still a secret.
        raise SettingsError(f"{name} ({source}): there is no such setting; known are {known}")
    return value


def _secrets(value: Any, source: str) -> Secrets | None:
    if value is None or isinstance(value, Secrets):
        return value
    several = value if isinstance(value, list | tuple) else [value]
    found: list[bytes] = []
    for one in several:
        if not isinstance(one, str | bytes):
            raise SettingsError(f"secret ({source}): expected text or bytes, or a list of them, newest first")
        found.append(one.encode() if isinstance(one, str) else one)
        if len(found[-1]) < _SECRET_SIZE_MIN:
            raise SettingsError(
                f"secret ({source}): {len(found[-1])} bytes are too few to keep anybody out; use {_SECRET_SIZE_MIN} or "
                "more of chance, for example from: openssl rand -hex 32"
            )
    if not found:
        raise SettingsError(f"secret ({source}): an empty list; leave it out to work without signatures")
    return Secrets(tuple(found))
