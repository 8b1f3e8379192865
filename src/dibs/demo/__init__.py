"""The main job on real data: many workers share one expensive step, and not all of them survive.

Eight processes train five kinds of classifiers on features that take long to make, and all of them ask for
everything.  One is killed in the middle of a computation, one is stopped and woken when it is too late.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, NamedTuple

import dibs
from dibs.demo.plan import TASKS
from dibs.demo.steps import explanation, memoize
from dibs.settings import gather

if TYPE_CHECKING:
    from dibs.demo.crew import Crew
    from dibs.demo.screen import Screen
    from dibs.demo.tally import Tally

WORKERS_MIN: Final = 3
WORKERS_MAX: Final = 64
DEFAULT_STORE: Final = os.path.join(".", ".dibs-demo")

TTL_S: Final = 3.0
"""Short, so that nobody falls asleep before the stopped worker is taken over from."""
TTL_REMOTE_S: Final = 6.0

OK, CHECK_FAILED, WRONG_USAGE, NO_STORE, INTERRUPTED = 0, 1, 2, 3, 130


class Place(NamedTuple):
    """Where the demo's cache lies; `words` for people, `environment` for its workers."""

    url: str
    words: str
    ttl_s: float
    environment: dict[str, str]


def run_demo(store: str | None, s3: bool, as_json: bool, workers: int = 8, fresh: bool = False) -> int:
    """Run the show and return the exit status: 0 when every promise was kept, else 1.

    `store`: path or URL, by default `./.dibs-demo`.  `s3`: through an S3 server that is started for the show.
    `as_json`: print one JSON object at the end and nothing else.  `fresh`: compute again what an earlier run left
    in the store; otherwise a complete earlier run is answered from the cache at once.
    2: wrong usage, or scikit-learn is missing; 3: the store or the server can't be had.

    Raises DibsError when the store refuses.
    """
    problem = _problem(store, s3, workers)
    if problem:
        sys.stderr.write(f"dibs demo: {problem}\n")
        return WRONG_USAGE

    from dibs.demo.crew import DemoFailed, ended_by_sigterm
    from dibs.testing.servers import EndedEarly, ServiceMissing

    try:
        with ended_by_sigterm(), _place(store, s3) as place:
            return _show(place, as_json, workers, fresh)
    except (ServiceMissing, EndedEarly) as error:
        sys.stderr.write(f"dibs demo: {error}\n")
        return NO_STORE
    except DemoFailed as error:
        sys.stderr.write(f"dibs demo: {error}\n")
        return CHECK_FAILED
    except KeyboardInterrupt:
        sys.stderr.write("dibs demo: interrupted; its workers are ended\n")
        return INTERRUPTED


def _problem(store: str | None, s3: bool, workers: int) -> str:
    from importlib.util import find_spec

    if find_spec("sklearn") is None:
        return "it works on data of scikit-learn, which is not installed: pip install 'dibs[demo]'"
    if store is not None and s3:
        return "--s3 starts a server of its own, so it can't go with --store"
    if not WORKERS_MIN <= workers <= WORKERS_MAX:
        return f"{workers} workers: one is killed and one is stopped, so take {WORKERS_MIN} to {WORKERS_MAX}"
    return ""


@contextlib.contextmanager
def _place(store: str | None, s3: bool) -> Iterator[Place]:
    if s3:
        from dibs.testing.servers import ministack

        with ministack() as server, server.credentials():
            server.make_bucket("dibs-demo")
            words = "a bucket of the S3 server that was started for this show, and is gone with it"
            yield Place(server.url("dibs-demo", "cache"), words, TTL_REMOTE_S, server.environment())
        return
    url = store or DEFAULT_STORE
    if "://" in url and not url.startswith("file:"):
        yield Place(url, url, TTL_REMOTE_S, {})
    elif url.startswith("memory:"):
        raise dibs.SettingsError(f"{url!r}: workers are processes of their own; name a folder or a bucket")
    else:
        yield Place(url if "://" in url else os.path.abspath(os.path.expanduser(url)), url, TTL_S, {})


def _show(place: Place, as_json: bool, workers: int, fresh: bool) -> int:
    from dibs.demo.crew import Crew
    from dibs.demo.screen import Screen
    from dibs.demo.tally import as_json as to_json
    from dibs.demo.tally import tally

    screen = Screen(None if as_json else sys.stdout, workers)
    complete = _clear(place, fresh, screen)
    with Crew(workers, place.url, place.ttl_s, place.environment, screen.tell, screen.tick) as crew:
        screen.write(f"{workers} workers get ready: they load scikit-learn and its digits")
        crew.gather()
        if not complete:
            screen.heading(f"With dibs: each of {workers} workers asks for {len(TASKS)} keys")
            _run(crew, screen, "first")
            crew.gather()  # somebody stands in for the killed worker
        screen.heading(
            f"{'The same again' if not complete else 'A run on a full cache'}: everybody asks for everything"
        )
        _run(crew, screen, "again")
        if not complete:
            screen.heading(f"Without dibs: each of {workers} workers computes everything")
            _run(crew, screen, "without")
        numbers = tally(crew.entries, crew.strikes, workers)
    if as_json:
        sys.stdout.write(json.dumps(to_json(numbers, workers, place.url, place.ttl_s), indent=2) + "\n")
    else:
        _conclude(screen, numbers, workers, place)
    return OK if numbers.ok else CHECK_FAILED


def _clear(place: Place, fresh: bool, screen: Screen) -> bool:
    """True when all keys are there from an earlier run; otherwise what is left of one is forgotten.

    Raises WaitTimeout when somebody is computing one of them, SettingsError when nothing may be written.
    """
    settings = gather({})[1]
    for setting in ("disable", "read_only"):
        if getattr(settings, setting):
            raise dibs.SettingsError(f"{setting} is set, by DIBS_{setting.upper()} or a file: a demo needs a cache")
    with dibs.open(place.url, ttl_s=place.ttl_s) as cache:
        keys = memoize(cache, lambda task: None).keys()
        present = sum(key in cache for key in keys)
        if present == len(TASKS) and not fresh:
            screen.write(f"All {present} keys are in {place.words}, from an earlier run (--fresh computes them again)")
            return True
        if present:
            screen.write(f"{present} of {len(TASKS)} keys of an earlier run are in {place.words}: forgotten")
        for hold in list(cache.holds()):
            if hold.name in keys and hold.space == "keys":
                with cache.once(hold.name, wait_s=2 * hold.ttl_s):
                    pass  # the holder is dead, and now nobody holds it
        for key in keys:
            cache.forget(key)
    return False


def _run(crew: Crew, screen: Screen, name: str) -> None:
    screen.begin(name)
    try:
        crew.run(name)
        screen.end()
    finally:
        screen.close()


def _conclude(screen: Screen, numbers: Tally, workers: int, place: Place) -> None:
    from dibs.demo.summary import summary

    screen.write()
    for line in summary(numbers, workers, len(os.sched_getaffinity(0)), place.words):
        screen.write(line)
    screen.heading("Why would score('svm', 10, gamma=0.1 + 0.2) be computed again?  print(score.explain(...)) says:")
    with dibs.open(place.url, ttl_s=place.ttl_s) as cache:
        for line in explanation(cache).splitlines():
            screen.write(line)
