"""Arrays and tensors: content decides, and how it lies in memory does not."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from dibs.digest import digest_of
from dibs.errors import Undigestible
from tests.digest_asserts import all_differ, equal, needed

RNG_SIZE = 3_000_000


# --- numpy ------------------------------------------------------------------------------------------------

dtypes = (
    arrays.scalar_dtypes() | arrays.array_dtypes(max_size=3) | st.just(np.dtype([("a", "i1"), ("b", "f8")], align=True))
)


def laid_out_otherwise(array: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
    """The same elements in other memory."""
    wide = np.zeros((*array.shape, 2), dtype=array.dtype)
    wide[..., 1] = array
    ways = [array.copy(order="F"), wide[..., 1], array.copy(), array.astype(array.dtype.newbyteorder())]
    if array.ndim:
        ways.append(np.ascontiguousarray(array[::-1])[::-1])
        ways[0].flags.writeable = False
    return ways


@given(arrays.arrays(dtypes, arrays.array_shapes(min_dims=0, min_side=0, max_side=4)))
@settings(max_examples=150, deadline=None)
def test_an_array_counts_by_content_however_it_lies_in_memory(array: np.ndarray[Any, Any]) -> None:
    digest = digest_of(array)
    for other in laid_out_otherwise(array):
        assert digest_of(other) == digest
    assert digest_of(pickle.loads(pickle.dumps(array))) == digest


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_arrays_that_differ_in_one_element_differ(data: st.DataObject) -> None:
    dtype = data.draw(arrays.integer_dtypes() | arrays.floating_dtypes() | arrays.unicode_string_dtypes())
    shape = data.draw(arrays.array_shapes(max_side=4))
    array = data.draw(arrays.arrays(dtype, shape))
    other = array.copy()
    place = data.draw(st.integers(0, array.size - 1))
    other.reshape(-1)[place] = data.draw(arrays.from_dtype(np.dtype(dtype)))
    one, two = array.reshape(-1)[place], other.reshape(-1)[place]
    same = one.tobytes() == two.tobytes() or (one != one and two != two)
    assert equal(array, other) == bool(same)


@pytest.mark.parametrize("dtype", ["f4", "f8", "i4", "c16", "f2", "M8[ns]", "U3"])
def test_large_arrays_are_hashed_piece_by_piece_to_the_same_end(dtype: str) -> None:
    array = (np.arange(RNG_SIZE) % 50_000).astype(dtype if dtype != "U3" else "i4").reshape(1000, 3000)
    if dtype == "U3":
        array = (array % 7).astype("U3")[:300]
    for other in laid_out_otherwise(array):
        assert digest_of(other) == digest_of(array)
    changed = array.copy()
    changed[-1, -1] = changed[0, 1]
    assert all_differ(array, changed, array.T, array.reshape(-1))


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "c8", "c16", "g"])
@pytest.mark.parametrize("size", [3, 1_500_000])
def test_every_nan_in_an_array_is_the_same(dtype: str, size: int) -> None:
    plain = np.zeros(size, dtype=dtype)
    plain[1:3] = np.nan
    strange = plain.copy()
    strange.real[1:3] = -plain.real[1:3]
    if dtype == "f8":
        strange.view("u8")[2] = 0x7FF0_0000_0000_0001
        assert strange.tobytes() != plain.tobytes()
    assert equal(plain, strange)
    assert all_differ(plain, np.zeros(size, dtype=dtype), -np.zeros(size, dtype=dtype))


def test_views_of_one_buffer_with_other_values_differ() -> None:
    square = np.arange(9.0).reshape(3, 3)
    assert all_differ(square, square.T, square.reshape(-1), square[::-1])
    assert equal(square, np.asfortranarray(square), square[::-1][::-1])
    assert equal(square[::2, ::2], square[::2, ::2].copy())
    assert equal(np.broadcast_to(np.float64(1), (3, 3)), np.ones((3, 3)))


def test_object_arrays_count_by_their_elements() -> None:
    assert all_differ(np.array(["a-b", "c"], object), np.array(["a", "b-c"], object), np.array(["a-b", "c"]))
    assert equal(np.array([[1], [2]], object), np.asfortranarray(np.array([[1], [2]], object)))
    assert equal(np.array([{"b", "a"}, None], object), np.array([{"a", "b"}, None], object))


def test_shape_and_dtype_count() -> None:
    assert all_differ(*(np.zeros(shape) for shape in [(), (1,), (0,), (0, 3), (3, 0), (1, 1)]), 0.0, [0.0])
    assert all_differ(*(np.zeros(8, dtype) for dtype in ["i1", "u1", "bool", "S1", "f8", "M8[s]", "M8[ms]", "m8[s]"]))


def test_padding_of_structures_does_not_count() -> None:
    aligned = np.dtype([("a", "i1"), ("b", "f8")], align=True)
    assert aligned.itemsize == 16
    memory = np.frombuffer(bytes(range(32)), dtype=aligned)
    padded = np.zeros(2, aligned)
    for name in "ab":
        padded[name] = memory[name]
    assert padded.tobytes() != memory.tobytes()
    packed = padded.astype([("a", "i1"), ("b", "f8")])
    assert equal(padded, memory, packed)
    assert all_differ(packed, packed.astype([("a", "i1"), ("c", "f8")]), packed["b"])


def test_extended_precision_has_padding_too() -> None:
    one, other = np.zeros(2, "g"), np.zeros(2, "g")
    other.view(np.uint8)[:] = 255
    other[:] = 0
    assert equal(one, other)
    assert all_differ(one, one + np.longdouble("1e-4000"))


def test_masked_arrays_count_by_what_they_show() -> None:
    shown = np.ma.MaskedArray([1, 2, 3], mask=[0, 1, 0])
    other = np.ma.MaskedArray([1, 9, 3], mask=[0, 1, 0])
    unmasked = np.ma.MaskedArray([1, 2, 3], mask=[0, 0, 0])
    assert equal(shown, other)
    assert equal(unmasked, np.ma.MaskedArray([1, 2, 3]))
    assert all_differ(shown, unmasked, np.array([1, 2, 3]), np.ma.MaskedArray([1, 2, 3], mask=[1, 0, 0]))
    structured = np.ma.MaskedArray([(1, 2.0)], mask=[(True, False)], dtype=[("a", "i4"), ("b", "f8")])
    assert equal(structured, np.ma.MaskedArray([(7, 2.0)], mask=[(True, False)], dtype=structured.dtype))


def test_a_memory_map_is_an_array(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.arange(10.0))
    mapped = np.load(tmp_path / "a.npy", mmap_mode="r")
    assert isinstance(mapped, np.memmap)
    assert equal(mapped, mapped[:], np.arange(10.0))


def test_scalars_have_exact_types() -> None:
    scalars = np.float64(1), np.float32(1), np.int64(1), np.int32(1), np.bool_(True), np.str_("1"), np.bytes_(b"1")
    assert all_differ(*scalars, 1, 1.0, True, "1", b"1", np.array(1.0))
    assert equal(np.float64("nan"), -np.float64("nan"))
    assert equal(np.longlong(1), np.int64(1))


def test_subclasses_of_arrays_count_by_class() -> None:
    plain = np.ones((1, 1))
    assert all_differ(plain, plain.view(np.matrix), plain.view(np.recarray), np.ma.MaskedArray(plain))


def test_random_generators_count_by_state() -> None:
    for make in (np.random.default_rng, np.random.RandomState, np.random.PCG64):
        one, other = make(1), make(1)
        assert equal(one, other)
        assert all_differ(one, make(2))
    drawn = np.random.default_rng(1)
    drawn.random()
    assert all_differ(drawn, np.random.default_rng(1))


def test_functions_of_numpy_count_by_name() -> None:
    assert all_differ(np.add, np.subtract, np.float32, np.float64, np.dtype("f4"), np.dtype("f8"))
    with pytest.raises(Undigestible, match="no name"):
        digest_of(np.frompyfunc(lambda x: x, 1, 1))


def test_memory_while_digesting_stays_small() -> None:
    script = """
import resource, sys, numpy as np
from dibs.digest import digest_of
digest_of(np.arange(10.0))
array = np.ones((4000, 6000), order=sys.argv[1])  # 192 MB
array[0, 0] = np.nan
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
digest_of(array)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    for order in "CF":
        ran = subprocess.run([sys.executable, "-c", script, order], capture_output=True, text=True, check=True)
        assert int(ran.stdout) < 60_000, f"KiB more than the array, order {order}"


# --- scipy and torch --------------------------------------------------------------------------------------


def test_sparse_matrices_count_by_format_and_elements() -> None:
    sparse = needed("scipy.sparse")
    dense = np.array([[0, 1.5, 0], [2, 0, 3]])
    matrix = sparse.csr_matrix(dense)
    shuffled = sparse.csr_matrix((np.array([1.5, 3.0, 2.0]), np.array([1, 2, 0]), np.array([0, 1, 3])), shape=(2, 3))
    doubled = sparse.coo_matrix(([1.0, 0.5, 2, 3], ([0, 0, 1, 1], [1, 1, 0, 2])), shape=(2, 3))
    wide = matrix.copy()
    wide.indices = wide.indices.astype(np.int64)
    assert not shuffled.has_sorted_indices
    assert equal(matrix, shuffled, wide)
    assert equal(doubled, sparse.coo_matrix(dense))
    assert doubled.nnz == 4, "digesting must not change the value"
    stored = matrix.copy()
    stored.data[0] = 0
    assert all_differ(
        matrix,
        matrix.tocsc(),
        matrix.tocoo(),
        sparse.csr_array(dense),
        matrix.astype("f4"),
        matrix.T,
        stored,
        sparse.csr_matrix(stored.toarray()),
        sparse.csr_matrix((2, 3)),
        sparse.csr_matrix((3, 2)),
    )


@pytest.fixture(scope="module")
def torch() -> Any:
    return needed("torch")


def test_tensors_count_by_dtype_shape_and_content(torch: Any) -> None:
    tensor = torch.arange(6.0).reshape(2, 3)
    storage = torch.arange(100.0)
    assert equal(
        tensor,
        tensor.T.contiguous().T,
        storage[:6].reshape(2, 3),
        tensor.clone().requires_grad_(),
        copy.deepcopy(tensor),
    )
    assert all_differ(
        tensor,
        tensor.T,
        tensor.reshape(-1),
        tensor.double(),
        tensor.numpy(),
        torch.nn.Parameter(tensor),
        tensor.to_sparse(),
        tensor.to_sparse_csr(),
        tensor.bfloat16(),
        tensor.half(),
        tensor + 1e-3,
    )
    assert equal(torch.view_as_complex(torch.ones(2, 2)).conj(), torch.complex(torch.ones(2), -torch.ones(2)))
    for kind in (torch.float32, torch.bfloat16, torch.float16):
        assert equal(torch.tensor([float("nan")], dtype=kind), -torch.tensor([float("nan")], dtype=kind))
        assert all_differ(torch.tensor([float("nan")], dtype=kind), torch.tensor([float("inf")], dtype=kind))
    with pytest.raises(Undigestible, match="meta"):
        digest_of(torch.ones(2, device="meta"))


def test_uncoalesced_tensors_are_summed(torch: Any) -> None:
    doubled = torch.sparse_coo_tensor([[0, 0]], [1.0, 2.0], (3,))
    assert equal(doubled, torch.sparse_coo_tensor([[0]], [3.0], (3,)))


def test_modules_count_by_class_parameters_settings_and_mode(torch: Any) -> None:
    nn = torch.nn

    def made(seed: int = 0) -> Any:
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(2, 3), nn.Dropout(0.1), nn.LSTM(3, 2), nn.BatchNorm1d(2))

    assert equal(made(), copy.deepcopy(made()), pickle.loads(pickle.dumps(made())))
    other_rate = made()
    other_rate[1].p = 0.2
    assert all_differ(made(), made(1), made().eval(), other_rate, nn.Sequential(*list(made())[:3]), made().state_dict())
    swapped = [nn.Sequential(nn.ReLU(), nn.Tanh()), nn.Sequential(nn.Tanh(), nn.ReLU())]
    assert all_differ(*swapped)
    by_order = [{"a": nn.ReLU(), "b": nn.Tanh()}, {"b": nn.Tanh(), "a": nn.ReLU()}, {"b": nn.ReLU(), "a": nn.Tanh()}]
    assert all_differ(*map(nn.ModuleDict, by_order))


def test_a_hook_of_a_module_is_not_overlooked(torch: Any) -> None:
    module = torch.nn.Linear(1, 1)
    module.register_forward_hook(lambda *_: None)
    with pytest.raises(Undigestible, match="_forward_hooks"):
        digest_of(module)


# --- forks ------------------------------------------------------------------------------------------------


def test_a_forked_child_can_digest_large_arrays() -> None:
    # A pool of threads that the parent has started isn't there in the child.
    script = """
import os, numpy as np
from dibs.digest import digest_of
array = np.arange(4_000_000)
digest = digest_of(array)
child = os.fork()
if child == 0:
    os._exit(0 if digest_of(array) == digest else 1)
assert os.waitpid(child, 0)[1] == 0
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_the_same_array_many_times_is_hashed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from dibs.digest import arrays as of_arrays

    asked: list[int] = []
    content: Callable[[Any], bytes] = of_arrays.content
    monkeypatch.setattr(of_arrays, "content", lambda array: asked.append(1) or content(array))
    array = np.arange(100_000.0)
    digest_of([array, array, {"again": array}])
    assert len(asked) == 1


def test_the_constant_that_stands_for_a_missing_element_has_a_digest() -> None:
    assert digest_of(np.ma.masked) == digest_of(np.ma.masked) != digest_of(np.ma.masked_array([0.0], [True]))
