"""The demo's two memoized functions: an expensive step that all classifiers share, and one cheap step for each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import dibs
from dibs.demo.plan import TASKS, Task, features_key, score_key


class Steps:
    """The two functions in one cache."""

    def __init__(
        self, features: dibs.Memoized[[float], Any], score: dibs.Memoized[[str, int, float], float]
    ) -> None:
        self.features = features
        self.score = score

    def ask(self, task: Task) -> Any:
        """The value of a task, computed here or elsewhere, once."""
        return self.score(task.family, task.parameter, task.gamma) if task.family else self.features(task.gamma)

    def key(self, task: Task) -> str:
        """The key of a task in the cache."""
        if task.family:
            return self.score.key(task.family, task.parameter, task.gamma)
        return self.features.key(task.gamma)

    def keys(self) -> dict[str, Task]:
        """All keys in the cache, and what they stand for."""
        return {self.key(task): task for task in TASKS.values()}


def memoize(cache: dibs.Cache, compute: Callable[[Task], Any]) -> Steps:
    """Memoize the two steps; `compute` carries one out.

    The work itself is in a module that only workers load, so its code can't count: the version stands for it.
    """

    @cache.memoize(name="demo.features", version="1")
    def features(gamma: float) -> Any:
        return compute(TASKS[features_key(gamma)])

    @cache.memoize(name="demo.score", version="1")
    def score(family: str, parameter: int, gamma: float) -> float:
        result: float = compute(TASKS[score_key(family, parameter, gamma)])
        return result

    return Steps(features, score)


def explanation(cache: dibs.Cache) -> str:
    """What `explain` says about a call that misses for a reason that is easily overlooked."""
    steps = memoize(cache, lambda task: None)
    return str(steps.score.explain("svm", 10, 0.1 + 0.2))
