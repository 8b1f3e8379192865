"""The bugs that `python -m stress.mutants` plants still have a place: each text occurs exactly once."""

from __future__ import annotations

import shlex

import pytest

from stress.mutants import ROOT, Stale, planted
from stress.planted import MUTANTS, Mutant


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_planted_bug_finds_its_place_and_is_python(mutant: Mutant) -> None:
    compile(planted(mutant, ROOT), mutant.file, "exec")


def test_a_bug_whose_place_has_changed_is_reported() -> None:
    with pytest.raises(Stale, match="occurs 0 times"):
        planted(MUTANTS[0]._replace(file="cell.py", old="what nobody ever wrote"), ROOT)
    with pytest.raises(Stale, match="changes nothing"):
        planted(MUTANTS[0]._replace(new=MUTANTS[0].old), ROOT)


def test_each_bug_has_a_name_of_its_own() -> None:
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)


def test_each_command_names_tests_that_are_there() -> None:
    for mutant in MUTANTS:
        module, *options = shlex.split(mutant.command)
        assert module in ("pytest", "dibs")
        assert all((ROOT / option).exists() for option in options if option.startswith("tests/")), mutant.command
