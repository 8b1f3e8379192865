"""What the demo computes: one feature step for each of two kernels, and classifiers trained on what it makes.

Pure and light: the parent process needs no scikit-learn.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from blake3 import blake3

GAMMAS: Final = (0.03, 0.3)
CLASSIFIERS: Final = {
    "knn": ("k", (1, 5)),
    "logistic": ("C", (1, 10)),
    "svm": ("C", (1, 10)),
    "forest": ("trees", (10, 30)),
    "network": ("units", (64,)),
}
"""Family: the name of its parameter, and the values that are tried."""


class Task(NamedTuple):
    """One call; `key` names it for people.  `family` is empty for the feature step."""

    key: str
    gamma: float
    family: str = ""
    parameter: int = 0


def features_key(gamma: float) -> str:
    return f"features/gamma={gamma:g}"


def score_key(family: str, parameter: int, gamma: float) -> str:
    return f"score/{family}/{CLASSIFIERS[family][0]}={parameter}/gamma={gamma:g}"


def _tasks() -> dict[str, Task]:
    tasks = [Task(features_key(gamma), gamma) for gamma in GAMMAS]
    for family, (_, values) in CLASSIFIERS.items():
        for value in values:
            for gamma in GAMMAS:
                tasks.append(Task(score_key(family, value, gamma), gamma, family, value))
    return {task.key: task for task in tasks}


TASKS: Final = _tasks()
KILLED_ON: Final = features_key(GAMMAS[0])
"""Who computes this key first is killed halfway ..."""
STOPPED_ON: Final = features_key(GAMMAS[1])
"""... and who computes this one is stopped halfway, and woken when somebody else has computed it."""


def order_of(worker: int) -> list[str]:
    """All keys, in an order of this worker's own; odd and even workers start with different features."""
    gammas = GAMMAS if worker % 2 == 0 else GAMMAS[::-1]
    keys: list[str] = []
    for gamma in gammas:
        scores = [task.key for task in TASKS.values() if task.family and task.gamma == gamma]
        keys.append(features_key(gamma))
        keys.extend(sorted(scores, key=lambda key: blake3(f"{worker} {key}".encode()).digest()))
    return keys
