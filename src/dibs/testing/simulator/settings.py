"""What kind of world it is: how many workers and hosts, which store, and how often what goes wrong."""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, Literal

WORKLOADS: Final = ("compute_once", "relay", "recompute")


@dataclass(frozen=True, slots=True)
class Rates:
    """Of each request: the share that meets this fault; the last three strike its process around that time."""

    lost: float = 0.0
    answer_lost: float = 0.0
    ghost: float = 0.0
    duplicate: float = 0.0
    second_answer: float = 0.0
    """As duplicate, and what comes back is the second answer.  Not drawn: opening a bucket can't stand it yet."""
    refused: float = 0.0
    slow: float = 0.0
    kill: float = 0.0
    pause: float = 0.0
    terminate: float = 0.0


@dataclass(frozen=True, slots=True)
class Strikes:
    """How many of these hit the world in its duration, on average."""

    kills: float = 0.0
    terminations: float = 0.0
    pauses: float = 0.0
    suspends: float = 0.0
    reboots: float = 0.0
    partitions: float = 0.0
    outages: float = 0.0
    clock_steps: float = 0.0
    damages: float = 0.0


@dataclass(frozen=True, slots=True)
class Settings:
    """One world; `drawn` makes a varied one from a seed, a test states what it needs."""

    workload: str = "compute_once"
    workers: int = 6
    hosts: int = 3
    keys: int = 8
    duration_s: float = 600.0
    """Faults happen for so long; then the world has to come to rest by itself."""
    ttl_s: float = 30.0
    remote: bool = True
    """A store across a network, or one that notifies its watchers on one host."""
    latency_s: float = 0.03
    request_timeout_s: float = 2.0
    versions: Literal["counter", "content"] = "counter"
    ages: bool = False
    """The store tells the age of a record, in whole seconds where it is remote."""
    preemption: float = 0.0
    strikes_within: float = 1.0
    """The share of the duration in which the strikes fall: work is often over early."""
    restarts: float = 0.8
    """The share of killed workers that is started again."""
    rates: Rates = Rates()
    strikes: Strikes = Strikes()

    @property
    def faultless(self) -> bool:
        return self.rates == Rates() and self.strikes == Strikes()

    def facts(self) -> dict[str, Any]:
        return asdict(self)


def drawn(seed: int, **fixed: Any) -> Settings:
    """The world of this seed: a tenth of them calm, a third harsh.  `fixed` settings are not drawn."""
    chance = random.Random(f"dibs settings {seed}")
    harshness = chance.choices((0.0, 1.0, 4.0), (1, 6, 3))[0]
    remote = chance.random() < 0.7
    ttl_s = chance.choice((10.0, 30.0, 60.0))

    def rate(most: float) -> float:
        """Half of the faults don't occur in a given world, so that each is also met without the others."""
        return round(min(harshness * most * chance.random() ** 2, 0.1), 4) if chance.random() < 0.5 else 0.0

    def number(most: float) -> float:
        return round(harshness * most * chance.random(), 2) if chance.random() < 0.5 else 0.0

    rates = Rates(
        lost=rate(0.05), answer_lost=rate(0.05), ghost=rate(0.03), duplicate=rate(0.05),
        refused=rate(0.05), slow=rate(0.05), kill=rate(0.01), pause=rate(0.02), terminate=rate(0.01),
        second_answer=rate(0.03),
    )  # fmt: skip
    strikes = Strikes(
        kills=number(4), terminations=number(2), pauses=number(8), suspends=number(4),
        reboots=number(1), partitions=number(4), outages=number(2), clock_steps=number(4), damages=number(3),
    )  # fmt: skip
    if not remote:  # system calls don't get lost on the way
        rates = Rates(kill=rates.kill, pause=rates.pause, terminate=rates.terminate)
        strikes = replace(strikes, partitions=0.0, outages=0.0)
    settings = Settings(
        workload=chance.choices(WORKLOADS, (5, 3, 4))[0],
        workers=chance.randint(2, 8),
        hosts=chance.randint(1, 4) if remote else 1,
        keys=chance.randint(2, 10),
        ttl_s=ttl_s,
        remote=remote,
        latency_s=chance.choice((0.005, 0.03, 0.15)) if remote else 0.0001,
        request_timeout_s=min(ttl_s / 6, chance.choice((0.5, 2.0, 10.0))) if remote else 10.0,
        versions=chance.choice(("counter", "content")),
        ages=chance.random() < 0.5,
        preemption=chance.choice((0.0, 0.0, 0.1)),
        strikes_within=chance.choice((0.05, 0.2, 1.0)),
        restarts=chance.choice((0.0, 0.8, 1.0)),
        rates=rates,
        strikes=strikes,
    )
    return replace(settings, **fixed)
