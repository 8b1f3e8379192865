"""SciPy's sparse matrices and arrays: by format, shape, dtype and stored elements in row-major order."""

from __future__ import annotations

from typing import Any

import numpy

from dibs.digest.arrays import content, encode_array
from dibs.digest.walk import SCALARS, Encoder, Walk


def find(kind: type, value: Any) -> Encoder | None:
    import scipy.sparse

    return _sparse if scipy.sparse.issparse(value) else None


def _sparse(value: Any, walk: Walk) -> bytes:
    """The order of indices, their width and duplicates (which mean a sum) don't count; a stored zero does."""
    found = value.tocoo(copy=False)
    coords = [numpy.asarray(axis, dtype=numpy.int64) for axis in _coords(found)]
    data = found.data
    order = numpy.lexsort(coords[::-1]) if data.size else numpy.zeros(0, dtype=numpy.int64)
    coords, data = [axis[order] for axis in coords], data[order]
    if data.size:
        fresh = numpy.ones(data.size, dtype=bool)
        fresh[1:] = numpy.logical_or.reduce([axis[1:] != axis[:-1] for axis in coords])
        if not fresh.all():
            starts = numpy.flatnonzero(fresh)
            data = numpy.add.reduceat(data, starts, dtype=data.dtype)
            coords = [axis[starts] for axis in coords]
    name = SCALARS[str](type(value).__name__)
    shape = b"t" + walk.sequence(tuple(int(length) for length in value.shape))
    return walk.known(b"sparse", name, shape, encode_array(data, walk), *map(content, coords))


def _coords(found: Any) -> tuple[Any, ...]:
    coords = getattr(found, "coords", None)
    return tuple(coords) if coords is not None else (found.row, found.col)
