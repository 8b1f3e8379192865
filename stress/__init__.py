"""Real processes, real signals, real servers: the scenarios behind dibs' promises.

Each scenario is a function that takes a store URL and its counts, and returns a `Tally` of what was counted;
it asserts the promise on the way.  `tests/test_stress_*.py` run them small in CI, `python -m stress` in full.
"""
