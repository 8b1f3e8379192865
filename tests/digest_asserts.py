"""What the tests of the digest say about values."""

from __future__ import annotations

import os
from typing import Any

import pytest

from dibs.digest import digest_of


def needed(package: str) -> Any:
    """The package; where it isn't installed the test is skipped, except in CI, where all are promised."""
    if os.environ.get("CI") == "true":
        __import__(package)
    return pytest.importorskip(package)


def equal(*made: Any) -> bool:
    return len({digest_of(value) for value in made}) == 1


def all_differ(*made: Any) -> bool:
    return len({digest_of(value) for value in made}) == len(made)
