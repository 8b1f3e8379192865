"""A deterministic world of hosts, processes, clocks and faults, in which the real dibs code runs.

    from dibs.testing.simulator import World, drawn
    history = World(seed=7, settings=drawn(7, workload="relay")).run()

Same seed, same history, byte for byte.  `search.simulate` runs many seeds and judges them.
"""

from dibs.testing.simulator.history import History
from dibs.testing.simulator.search import simulate
from dibs.testing.simulator.settings import Rates, Settings, Strikes, drawn
from dibs.testing.simulator.world import World

__all__ = ["History", "Rates", "Settings", "Strikes", "World", "drawn", "simulate"]
