"""Estimators of scikit-learn and models of pydantic: their class, their parameters or fields, and what was fitted."""

from __future__ import annotations

import sys
from typing import Any

from dibs.digest import objects
from dibs.digest.walk import Encoder, Walk


def find(kind: type, value: Any) -> Encoder | None:
    pydantic = sys.modules.get("pydantic")
    if pydantic is not None and issubclass(kind, pydantic.BaseModel):
        return objects.with_attributes(kind, _beside_the_fields)
    sklearn = sys.modules.get("sklearn.base")
    if sklearn is not None and issubclass(kind, sklearn.BaseEstimator):
        # Parameters and fitted state are all attributes; __getstate__ would add the version of scikit-learn.
        return objects.with_attributes(kind)
    return None


def _beside_the_fields(value: Any, walk: Walk) -> bytes:
    """Extra and private attributes.  Which fields were set, and which are defaults, doesn't count."""
    extra, private = value.__pydantic_extra__, value.__pydantic_private__
    return b"t" + walk.sequence((extra or None, private or None))
