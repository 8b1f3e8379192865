"""Objects: by class and state, whatever they were made with; what has no stable state is refused, and says why."""

from __future__ import annotations

import asyncio
import collections
import copy
import dataclasses
import datetime
import decimal
import enum
import functools
import io
import itertools
import mmap
import operator
import pathlib
import pickle
import random
import re
import socket
import tempfile
import threading
import types
import weakref
import zoneinfo
from collections.abc import Callable
from typing import Any

import attrs
import pytest

from dibs.digest import digest_of, digest_of_call, register_digest
from dibs.errors import Undigestible
from tests.digest_asserts import all_differ, equal, needed
from tests.golden_digest import Access, Color, Config, Keyed, Number, Plain, Point, Reduced, Slotted, Words


def code_of(obj: Any) -> str | None:
    """As identity's hook, in short: by name for what the tests define."""
    return f"code of {obj.__qualname__}" if obj.__module__.startswith("test") else None


# --- classes of one's own -----------------------------------------------------------------------------------


@attrs.define
class Defined:
    a: int
    b: object = None


@attrs.define(frozen=True, cache_hash=True)
class Hashing:
    a: str


@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    a: int
    b: tuple[int, ...] = ()


class Cached:
    def __init__(self, a: int) -> None:
        self.a = a

    @functools.cached_property
    def twice(self) -> int:
        return 2 * self.a


class Secretive:
    """Its state leaves out what can't be stored."""

    def __init__(self, a: int) -> None:
        self.a, self.lock = a, threading.Lock()

    def __getstate__(self) -> object:
        return {"a": self.a}

    def __setstate__(self, state: dict[str, int]) -> None:
        self.__init__(state["a"])  # type: ignore[misc]


class Restless:
    counter = itertools.count()

    def __reduce__(self) -> tuple[Any, ...]:
        return Restless, (), {"drawn": next(self.counter)}

    def __setstate__(self, state: object) -> None:
        pass


class Addressed:
    def __getstate__(self) -> object:
        return {"where": id(self)}

    def __setstate__(self, state: object) -> None:
        pass


class Tree:
    def __init__(self, name: str) -> None:
        self.name, self.parent, self.children = name, None, []  # type: ignore[var-annotated]

    def add(self, name: str) -> Tree:
        child = Tree(name)
        child.parent = self  # type: ignore[assignment]
        self.children.append(child)
        return child


class Ordered(dict[str, int]):
    def __iter__(self) -> Any:
        return iter(())

    def __getitem__(self, name: str) -> int:
        return 0


class Level(enum.IntEnum):
    LOW = 1


class Twin(enum.IntEnum):
    LOW = 1


def test_instances_count_by_class_and_attributes() -> None:
    assert equal(Plain(a=1, b={"x", "y"}), Plain(b={"y", "x"}, a=1), copy.deepcopy(Plain(a=1, b={"x", "y"})))
    assert all_differ(Plain(a=1), Plain(a=2), Plain(b=1), Plain(), Plain(a=1, b=1), {"a": 1})
    assert equal(Slotted(), Slotted())
    other = Slotted()
    other.shown = 2
    assert all_differ(Slotted(), other)
    hidden = Slotted()
    hidden._Slotted__private = 1  # type: ignore[attr-defined]
    assert all_differ(Slotted(), hidden)


def test_dataclasses_and_attrs_count_by_fields() -> None:
    assert equal(Config(1.0, {"a", "b"}), Config(1.0, {"b", "a"}))
    assert all_differ(Config(1.0, set()), Config(1, set()), Frozen(1), Frozen(1, (1,)), Defined(1), Defined(1, 2))
    assert equal(Defined(1, [2]), pickle.loads(pickle.dumps(Defined(1, [2]))))
    assert equal(Frozen(1), pickle.loads(pickle.dumps(Frozen(1))))
    extended = Config(1.0, set())
    extended.note = 1  # type: ignore[attr-defined]
    assert all_differ(Config(1.0, set()), extended)


def test_what_was_derived_on_the_way_does_not_count() -> None:
    asked, unasked = Cached(1), Cached(1)
    assert asked.twice == 2
    assert equal(asked, unasked)
    hashed = Hashing("a")
    hash(hashed)
    assert equal(hashed, Hashing("a"))


def test_pydantic_models_count_by_fields_extras_and_private_attributes() -> None:
    pydantic = needed("pydantic")

    class Model(pydantic.BaseModel):  # type: ignore[misc]
        model_config = pydantic.ConfigDict(extra="allow")
        a: int = 1
        _private: int = pydantic.PrivateAttr(0)

    other = Model()
    other._private = 1
    assert equal(Model(), Model(a=1), Model().model_copy())
    assert all_differ(Model(), Model(a=2), Model(b=1), other)


def test_estimators_count_by_parameters_and_what_was_fitted() -> None:
    needed("sklearn")
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x, y = [[0.0], [1.0], [2.0], [3.0]], [0, 1, 0, 1]
    fitted = LogisticRegression().fit(x, y)
    assert all_differ(
        LogisticRegression(), fitted, LogisticRegression(C=2.0), LogisticRegression().fit(x, [1, 0, 0, 1])
    )
    assert equal(fitted, LogisticRegression().fit(x, y), pickle.loads(pickle.dumps(fitted)))
    forest = [RandomForestClassifier(5, random_state=seed).fit(x, y) for seed in (0, 0, 1)]
    assert equal(forest[0], forest[1], pickle.loads(pickle.dumps(forest[0])))
    assert all_differ(forest[0], forest[2], make_pipeline(StandardScaler(), fitted), make_pipeline(StandardScaler()))


def test_subclasses_of_what_is_built_in_count_by_class_content_and_attributes() -> None:
    marked = Words("ab")
    marked.mark = 1  # type: ignore[attr-defined]
    assert all_differ(Words("ab"), ["a", "b"], Words("ba"), marked, Number(3), 3, Point(1, 2), (1, 2), Words())
    assert equal(Words("ab"), copy.copy(Words("ab")))
    assert all_differ(Ordered(a=1), Ordered(a=2), Ordered()), "methods that are overridden must not hide the content"


def test_named_tuples_and_enums_count_by_class_and_name() -> None:
    Other = collections.namedtuple("Other", "x y")
    assert all_differ(Point(1, 2), Point(2, 1), Other(1, 2), (1, 2))
    assert all_differ(Color.RED, "red", Level.LOW, Twin.LOW, 1, Access.READ, Access.WRITE, Access.READ | Access.WRITE)
    assert equal(Access.READ | Access.WRITE, Access(3))


def test_types_of_the_standard_library_are_told_apart() -> None:
    utc, berlin = datetime.UTC, zoneinfo.ZoneInfo("Europe/Berlin")
    noon = datetime.datetime(2026, 11, 21, 12, tzinfo=utc)
    assert all_differ(
        noon, noon.replace(tzinfo=None), noon.astimezone(berlin), noon.date(), noon.time(), noon.replace(fold=1),
        noon.timetz(), datetime.timedelta(1), str(noon), utc, berlin, zoneinfo.ZoneInfo("Europe/Paris"),
        decimal.Decimal("1.0"), decimal.Decimal("1.00"), decimal.Decimal("NaN"), decimal.Decimal("sNaN"), 1.0,
        pathlib.Path("a"), pathlib.PurePosixPath("a"), "a", re.compile("a"), re.compile("a", re.I), re.compile(b"a"),
        range(3), range(4), [0, 1, 2], slice(3), slice(0, 3), collections.deque([1]), collections.deque([1], 5),
        collections.OrderedDict(a=1, b=2), collections.OrderedDict(b=2, a=1), {"a": 1, "b": 2},
        collections.Counter(a=1), collections.defaultdict(int, a=1), collections.defaultdict(None, a=1), {"a": 1},
        types.SimpleNamespace(a=1), types.MappingProxyType({"a": 1}), memoryview(b"a"), b"a", bytearray(b"a"),
    )  # fmt: skip
    assert equal(range(0, 4, 3), range(0, 5, 3), range(0, 6, 3))
    assert equal(range(0), range(7, 3), range(0, 0, 5))
    assert equal(memoryview(b"abcd")[::2], memoryview(b"ac"))
    assert equal(collections.Counter("ab"), collections.Counter("ba"))
    assert equal(datetime.timezone(datetime.timedelta(0)), utc)
    with decimal.localcontext(decimal.Context(capitals=0)):
        lower = digest_of(decimal.Decimal("1E+9"))
    assert lower == digest_of(decimal.Decimal("1E+9"))


def test_parents_and_children_have_a_digest() -> None:
    def grown(last: str) -> Tree:
        root = Tree("root")
        root.add("left").add("leaf")
        root.add("right").add(last)
        return root

    assert equal(grown("a"), grown("a"), copy.deepcopy(grown("a")))
    assert all_differ(grown("a"), grown("b"), grown("a").children[0])


def test_a_state_of_its_own_making_is_taken_at_its_word() -> None:
    assert equal(Secretive(1), Secretive(1), copy.deepcopy(Secretive(1)))
    assert all_differ(Secretive(1), Secretive(2))
    assert equal(Reduced(), Reduced())
    assert equal(random.Random(1), random.Random(1))
    assert all_differ(random.Random(1), random.Random(2), ValueError("a"), ValueError("b"), KeyError("a"))


@pytest.mark.parametrize("kind", [Restless, Addressed])
def test_a_state_that_reads_differently_after_a_round_trip_is_refused(kind: type) -> None:
    with pytest.raises(Undigestible, match="after a pickle round trip"):
        digest_of({"deep": [kind()]})


def test_local_classes_are_told_to_the_caller() -> None:
    class Local:
        pass

    class State(Secretive):
        pass

    met: dict[type, None] = {}
    values = [("a", [Local(), Plain(x=Config(1.0, set())), State(1)]), ("b", datetime.timedelta(1)), ("c", Color.RED)]
    digest_of_call(b"", values, met=met)
    assert list(met) == [Local, Plain, Config, State, Color]


def test_classes_made_by_the_thousand_are_forgotten_again() -> None:
    def make() -> weakref.ref[type]:
        kind = type("Passing", (), {})
        digest_of(kind())
        return weakref.ref(kind)

    found = [make() for _ in range(20)]
    import gc

    gc.collect()
    assert [kind() for kind in found] == [None] * 20


# --- what users say themselves ------------------------------------------------------------------------------


def test_a_class_says_itself_what_counts() -> None:
    class Named:
        def __init__(self, name: object, rest: object = None) -> None:
            self.name, self.rest = name, rest

        def __dibs_key__(self) -> object:
            return self.name

    class Child(Named):
        pass

    assert equal(Named("a"), Named("a", threading.Lock()))
    assert all_differ(Named("a"), Named("b"), Child("a"), "a", Keyed())
    with pytest.raises(Undigestible, match=re.escape("value.__dibs_key__()[0] (_thread.lock)")):
        digest_of(Named([threading.Lock()]))
    itself = Named(None)
    itself.name = itself
    with pytest.raises(Undigestible, match="leads back"):
        digest_of(itself)


def test_others_classes_can_be_registered() -> None:
    class Foreign:
        def __init__(self, a: int) -> None:
            self.a, self.lock = a, threading.Lock()

    class Child(Foreign):
        pass

    with pytest.raises(Undigestible, match="lock"):
        digest_of(Foreign(1))
    register_digest(Foreign, lambda value: (value.a,))
    assert equal(Foreign(1), Foreign(1))
    assert all_differ(Foreign(1), Foreign(2), Child(1), (1,))
    for kind in (int, list, object):
        with pytest.raises(TypeError, match="register_digest takes a class"):
            register_digest(kind, str)
    with pytest.raises(TypeError, match="function of the value"):
        register_digest(Foreign, 3)  # type: ignore[arg-type]


# --- functions and classes as values ------------------------------------------------------------------------


def helper(x: int = 1) -> int:
    return x


class Model:
    def method(self) -> None: ...

    @classmethod
    def built(cls) -> None: ...

    @staticmethod
    def plain() -> None: ...


def test_functions_and_classes_count_by_name_and_code() -> None:
    model = Model()
    model.a = 1  # type: ignore[attr-defined]
    made: list[Any] = [
        helper, Model, Model.method, Model().method, model.method, Model.built, Model.plain, len, sorted, str.upper,
        [1].index, functools.partial(helper, 1), functools.partial(helper, 2), functools.partial(helper, x=1), int,
        functools.lru_cache(helper), operator.itemgetter(1), operator.itemgetter(2), operator.attrgetter("a"),
        list[int], list[str], int | None, collections.OrderedDict, re.compile, lambda: 1,
    ]  # fmt: skip
    digests = [digest_of(value, code_of=code_of) for value in made]
    assert len(set(digests)) == len(made)
    assert digest_of(helper, code_of=lambda obj: "edited") != digest_of(helper, code_of=code_of)
    assert digest_of([Model], code_of=lambda obj: "edited") != digest_of([Model], code_of=code_of)
    assert digest_of(int | None) == digest_of(None | int)


@pytest.mark.parametrize("value", [helper, Model, Model().method, functools.partial(helper), {"f": [helper]}])
def test_code_that_nobody_knows_is_refused(value: object) -> None:
    with pytest.raises(Undigestible, match="its code would have to count"):
        digest_of(value)


def test_a_function_without_a_name_or_known_code_is_refused() -> None:
    with pytest.raises(Undigestible, match="no name by which others could find it"):
        digest_of(lambda: 1, code_of=lambda obj: None)


# --- refusals -----------------------------------------------------------------------------------------------


async def coroutine() -> None: ...


REFUSED: dict[str, Callable[[], Any]] = {
    "generator": lambda: (number for number in [1]),
    "iterator": lambda: iter([1]),
    "map": lambda: map(len, []),
    "enumerate": lambda: enumerate([]),
    "file": lambda: tempfile.TemporaryFile(),  # noqa: SIM115
    "text file": lambda: open(__file__),  # noqa: SIM115
    "StringIO": lambda: io.StringIO("a"),
    "socket": lambda: socket.socket(),
    "lock": threading.Lock,
    "condition": threading.Condition,
    "thread": threading.Thread,
    "event loop": asyncio.new_event_loop,
    "coroutine": coroutine,
    "module": lambda: threading,
    "weakref": lambda: weakref.ref(Model),
    "object()": object,
    "mmap": lambda: mmap.mmap(-1, 10),
    "code": lambda: helper.__code__,
    "object with a generator": lambda: Plain(items=(number for number in [1])),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.filterwarnings("ignore:coroutine")
def test_what_has_no_stable_content_is_refused_twice(name: str) -> None:
    value = REFUSED[name]()
    try:
        for _ in range(2):  # a type must not be remembered as one that can be encoded
            with pytest.raises(Undigestible, match="has no stable digest"):
                digest_of(value)
    finally:
        close = getattr(value, "close", None)
        if close is not None:
            close()


def test_the_error_names_the_argument_the_path_the_type_and_the_remedies() -> None:
    value = {"model": Plain(layers=[1, 2, 3, Plain(hook=threading.Lock())])}
    with pytest.raises(Undigestible) as caught:
        digest_of_call(b"", [("x", 1), ("cfg", value)], code_of=code_of)
    message = str(caught.value)
    assert message.startswith("cfg['model'].layers[3].hook (_thread.lock) has no stable digest: ")
    for remedy in ('ignore=("cfg",)', "__dibs_key__", "dibs.register_digest", "dibs.File", "key="):
        assert remedy in message.replace("'", '"')


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ({1: [threading.Lock()]}, "v[1][0]"),
        ({(1, 2): threading.Lock()}, "v[(1, 2)]"),
        ((0, {"a": object()}), "v[1]['a']"),
        ({"b": 1, "a": {"x": object()}}, "v['a']['x']"),
        (Point(1.0, object()), "v.y"),
        ({Plain(a=object())}, "v.member.a"),
        (Defined(1, object()), "v.b"),
        (functools.partial(len, object()), "v.args[0]"),
        ({Plain(a=object()): 1}, "v.key(Plain).a"),
        ([1, 1, object()], "v[2]"),
        (types.SimpleNamespace(a=object()), "v.a"),
        (collections.defaultdict(None, a=object()), "v['a']"),
    ],
    ids=str,
)
def test_the_path_leads_to_the_culprit(value: object, path: str) -> None:
    with pytest.raises(Undigestible) as caught:
        digest_of(value, "v")
    assert str(caught.value).startswith(f"{path} (")
