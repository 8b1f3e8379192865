"""What has no stable digest: the reason and the way to it, collected on the way out, and the message for people."""

from __future__ import annotations

from dibs.errors import Undigestible

_PATH_PARTS_MAX = 12


class Refused(Exception):
    """Somewhere inside the value; each container on the way out adds its part of the path."""

    def __init__(self, value: object, reason: str, remedy: str = "") -> None:
        super().__init__(reason)
        self.kind = type(value)
        self.reason, self.remedy = reason, remedy
        self.path: list[str] = []
        """From the inside out."""

    def within(self, part: str) -> Refused:
        self.path.append(part)
        return self


def undigestible(where: str, refused: Refused) -> Undigestible:
    """The error for the user: the argument, the path inside it, the type, the reason and the remedies."""
    parts = refused.path[::-1]
    if len(parts) > _PATH_PARTS_MAX:
        half = _PATH_PARTS_MAX // 2
        parts = [*parts[:half], "…", *parts[-half:]]
    kind = refused.kind
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    remedies = [refused.remedy] if refused.remedy else []
    remedies += [
        f"if it doesn't change the result, leave it out with ignore=({where!r},)"
        if where.isidentifier()
        else "if it doesn't change the result, leave it out",
        "give its class a method __dibs_key__ that returns what counts",
        "say what counts of a class that isn't yours with dibs.register_digest(type, function)",
        "dibs.File(path) for the content of a file",
        "key= for a key of your own",
    ]
    listed = "".join(f"\n  - {remedy}" for remedy in remedies)
    return Undigestible(f"{where}{''.join(parts)} ({name}) has no stable digest: {refused.reason}. Remedies:{listed}")
