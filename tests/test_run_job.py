"""What is declared about a command, and the key that is made of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dibs.command.job import InputMissing, Job, packed
from dibs.errors import SettingsError


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def key(job: Job, **environment: str) -> str:
    return job.key(job.parts(environment))


def test_the_order_of_declarations_does_not_count_and_that_of_words_does() -> None:
    for name in ("a", "b"):
        Path(name).write_text(name)
    one = Job(("x", "y"), ("a", "b"), ("c", "d"), ("E", "F"))
    assert key(one) == key(Job(("x", "y"), ("b", "a", "a"), ("d", "c"), ("F", "E", "E")))
    assert key(one) != key(one._replace(command=("y", "x")))
    assert key(one) != key(one._replace(command=("x y",)))
    assert key(one) != key(one._replace(inputs=("a",), outputs=("b", "c", "d")))


def test_words_that_are_no_text_have_a_key_of_their_own() -> None:
    assert key(Job(("x", "\udcff"))) != key(Job(("x", "\\udcff")))
    assert key(Job(("\udcff\n",))).startswith("run \\udcff\\n/")


def test_two_contents_under_exchanged_names_are_another_key() -> None:
    job = Job(("x",), ("a", "b"))
    Path("a").write_text("1")
    Path("b").write_text("2")
    before = key(job)
    Path("a").write_text("2")
    Path("b").write_text("1")
    assert key(job) != before


def test_the_ingredients_of_very_many_inputs_fit_into_a_record() -> None:
    names = [f"input-{number}-{'x' * 100}" for number in range(300)]
    for name in names:
        Path(name).write_text(name)
    job = Job(("x",), tuple(names))
    data = packed(job.parts({}))
    assert len(data) <= 8192
    kept = json.loads(data)
    assert "command" in kept
    (rest,) = (label for label in kept if label.startswith("more inputs"))
    Path(names[-1]).write_text("changed")
    assert json.loads(packed(job.parts({})))[rest] != kept[rest], "what changed is in there somewhere"


def test_an_input_that_cannot_be_read_is_named() -> None:
    with pytest.raises(InputMissing, match="--in missing"):
        Job(("x",), ("missing",)).parts({})
    Path("tree").mkdir()
    Path("tree/dangling").symlink_to("nowhere")
    with pytest.raises(InputMissing, match="dangling"):
        Job(("x",), ("tree",)).parts({})


def test_a_name_that_is_too_long_is_refused() -> None:
    with pytest.raises(SettingsError, match="--name"):
        Job(("x" * 250,)).check()
    Job(("x" * 250,), name="short").check()


def test_an_input_may_be_an_output() -> None:
    Path("same").touch()
    Job(("x",), ("same",), ("same",)).check()
    with pytest.raises(SettingsError, match="one another"):
        Job(("x",), ("tree",), ("tree/below",)).check()
