"""The work of the demo, on the 1,797 handwritten digits that come with scikit-learn.

The expensive step makes features that hardly change when a digit is turned or moved a little: a Gaussian kernel
between each image and 899 landmarks, averaged over 125 small rotations and shifts of the image (Haasdonk and
Burkhardt, "Invariant kernel functions for pattern analysis", 2007), then reduced to 60 dimensions.
The cheap steps train one classifier each on these features.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from itertools import product
from typing import Any, Final

import numpy as np
from scipy import ndimage
from sklearn.datasets import load_digits
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics.pairwise import rbf_kernel
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.svm import SVC
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from dibs.demo.plan import Task

ANGLES: Final = (-12.0, -6.0, 0.0, 6.0, 12.0)
SHIFTS: Final = (-1.0, -0.5, 0.0, 0.5, 1.0)
DIMENSIONS: Final = 60
FOLDS: Final = 3


@functools.cache
def digits() -> tuple[Any, Any]:
    """Images (1797, 8, 8) in [0, 1], and which digit each shows."""
    bunch = load_digits()
    return bunch.images / 16.0, bunch.target


def prepare() -> None:
    """Load the data, and keep this process to one core: the workers share the machine."""
    threadpool_limits(1)
    digits()


def features(gamma: float, halfway: Callable[[], None]) -> Any:
    """The expensive step: float32 array (1797, 60).  Calls `halfway` once, in the middle."""
    images, _ = digits()
    landmarks = images[::2].reshape(len(images[::2]), -1)
    kernel = np.zeros((len(images), len(landmarks)))
    for number, angle in enumerate(ANGLES):
        if number == len(ANGLES) // 2:
            halfway()
        turned = ndimage.rotate(images, angle, axes=(1, 2), reshape=False, order=1)
        for down, right in product(SHIFTS, SHIFTS):
            moved = ndimage.shift(turned, (0, down, right), order=1)
            kernel += rbf_kernel(moved.reshape(len(images), -1), landmarks, gamma=gamma)
    kernel /= len(ANGLES) * len(SHIFTS) ** 2
    centred = kernel - kernel[::2].mean(axis=0)
    _, _, axes = np.linalg.svd(centred[::2], full_matrices=False)
    reduced = centred @ axes[:DIMENSIONS].T
    return (reduced / reduced.std()).astype(np.float32)


def score(task: Task, of: Any) -> float:
    """A cheap step: accuracy of one classifier on the features `of`, cross-validated."""
    _, target = digits()
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
    return round(float(cross_val_score(_classifier(task), of, target, cv=folds).mean()), 6)


def _classifier(task: Task) -> Any:
    value = task.parameter
    match task.family:
        case "knn":
            return KNeighborsClassifier(value)
        case "logistic":
            return LogisticRegression(C=value, max_iter=500)
        case "svm":
            return SVC(C=value)
        case "forest":
            return RandomForestClassifier(value, random_state=0)
        case "network":
            return MLPClassifier((value,), max_iter=400, early_stopping=True, random_state=0)
    raise AssertionError(task)
