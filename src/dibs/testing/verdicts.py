"""Judge a history: which of the promises were broken in it.

Knows nothing of how dibs works inside, only what a record says, who wrote it when, and what the workers saw.
Times are true times; margins are those that dibs states for clock rates, and the rates the simulator draws.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from dibs.testing.case import AGE_ERROR_S, Case, Change, Entry, Told, current

FAILURES_MAX: Final = 3
DEATHS_MAX: Final = 10
SILENCE_MIN: Final = 1.0
"""A live holder may be taken over when its record was unchanged for so many ttl of true time: observers count
1.1, on clocks that run at most 5 % fast."""
SILENT_RATES: Final = ("lost", "answer_lost", "ghost", "refused", "slow")
WAITING: Final = ("get_or_compute", "once", "recompute", "lock")
AT_ONCE_S: Final = 2.0
POLL_S_MAX: Final = 9.0
"""The longest interval between two looks at a bucket, with the requests that a take-over needs."""
CLOCK_RATE_MAX: Final = 1.06


Verdict = Callable[[Case], Iterator[str]]


def violations(told: Told) -> list[str]:
    """What is wrong with this history, one line each; nothing, if all promises were kept."""
    case = Case(told)
    return [f"{verdict.__name__}: {found}" for verdict in VERDICTS for found in verdict(case)]


# --- everything ends ------------------------------------------------------------------------------------


def every_wait_ended(case: Case) -> Iterator[str]:
    if case.told.ended != "finished":
        waits = [f"{e['task']} waits for {e['waits_for']}" for e in case.of["still waits"]]
        yield f"the world ended by {case.told.ended}: {'; '.join(waits[:4]) or 'nobody waits'}"
        return
    polite = {e["who"] for e in case.of["ended"]} - {e["who"] for e in case.of["terminated"]}
    answered = case.answers()
    for e in case.of["asked"]:
        if e["who"] in polite and (e["who"], e["call"]) not in answered:
            yield f"t={e['t']} {e['who']} asked for {e['key']} (call {e['call']}) and never got an answer"


def nothing_crashed(case: Case) -> Iterator[str]:
    for e in case.of["crashed"]:
        yield f"t={e['t']} {e['who']}: {e['error']} at {' > '.join(e['frames'])}"


def errors_have_a_reason(case: Case) -> Iterator[str]:
    asked = {(e["who"], e["call"]): e for e in case.of["asked"]}
    allowed = {"Boom", "ComputeFailed"} if case.faultless else {"Boom", "ComputeFailed", "StoreUnavailable", "LockLost"}
    if case.of["may meet circles"]:
        allowed.add("WaitCircle")
    for e in case.of["raised"]:
        ask = asked[e["who"], e["call"]]
        if e["error"] == "WaitTimeout" and ask.get("wait_s") is not None:
            waited_s = e["t"] - ask["t"]
            if waited_s < ask["wait_s"] / CLOCK_RATE_MAX:
                yield f"t={e['t']} {e['who']} gave up on {e['key']} after {waited_s:.2f} of {ask['wait_s']} s"
        elif e["error"] == "LockLost" and e["method"] == "once" and case.told.facts["workload"] == "recompute":
            continue  # a put or forget ended the hold of the block, and the block noticed
        elif e["error"] not in allowed:
            yield f"t={e['t']} {e['who']} {e['method']}({e['key']}) raised {e['error']}: {e['detail']}"
        elif e["error"] == "ComputeFailed":
            failures = sum(1 for f in case.of["failed"] if f["key"] == e["key"] and f["t"] <= e["t"])
            deaths = sum(1 for c in case.changes(e["key"]) if c.ended_as("taken over") and c.t <= e["t"])
            if failures < FAILURES_MAX and deaths < DEATHS_MAX - 1:
                here = f"t={e['t']} {e['who']}: {e['key']}"
                yield f"{here} was given up after {failures} failures, {deaths} deaths"
    if case.faultless:
        for e in case.of["lost"]:
            yield f"t={e['t']} {e['who']} lost {e['lock']} without any fault: {e['detail']}"


def everything_can_be_had_in_the_end(case: Case) -> Iterator[str]:
    started = case.of["started"]
    if case.told.ended != "finished" or not started:
        return
    last = started[-1]["who"]
    for what in ("raised", "lost"):
        for e in case.of[what]:
            if e["who"] == last and e.get("error") not in ("Boom", "ComputeFailed", "WaitCircle"):
                thing = e.get("key", e.get("lock"))
                yield f"t={e['t']} after all faults: {thing}: {e.get('error', what)} {e['detail']}"


def nothing_held_at_rest(case: Case) -> Iterator[str]:
    for e in case.of["at rest"]:
        if "claim" not in e:
            continue
        who = e["holder"]
        t, how = case.gone.get(who, (0.0, "never started"))
        # Who gets no answer can't give up what it holds; its claim may even land after its end.
        if how == "ended" and (who, e["name"]) not in case.faulty and not _cut_off(case, t):
            yield f"{e['name']} is still held by {who}, which ended in an orderly way at t={t}"


def _cut_off(case: Case, t: float) -> bool:
    """Whether some partition or outage lasted at about `t`."""
    spans = [(e["t"], e["t"] + e["seconds"]) for what in ("cut off", "outage") for e in case.of[what]]
    return any(begin <= t + 1.0 and t <= end + case.told.facts["ttl_s"] for begin, end in spans)


# --- records --------------------------------------------------------------------------------------------


def numbers_never_go_back(case: Case) -> Iterator[str]:
    for name, changes in case.cells.items():
        attempts: dict[str, float] = {}
        for c in changes:
            for number in ("generation", "epoch"):
                if c.now[number] < c.before.get(number, 0):
                    yield f"t={c.t} {c.who} set {name} from {number} {c.before[number]} to {c.now[number]}"
            if c.claimed and c.now["generation"] <= c.before.get("generation", 0):
                yield f"t={c.t} {c.who} claimed {name} without a new generation"
            if c.now["attempt"] in attempts:
                yield f"t={c.t} {c.who}: a write of {name} of t={attempts[c.now['attempt']]} landed once more"
            attempts[c.now["attempt"]] = c.t


def one_commit_per_epoch(case: Case) -> Iterator[str]:
    for name, changes in case.cells.items():
        committed: dict[int, Change] = {}
        for c in changes:
            if not c.committed:
                continue
            epoch = c.now["value_epoch"]
            if c.now["mark"] == "missing":
                yield f"t={c.t} {c.who}: {name} names a blob that isn't there"
            if epoch != c.now["epoch"]:
                yield f"t={c.t} {c.who} gave a value for epoch {epoch} of {name} in epoch {c.now['epoch']}"
            if epoch in committed:
                first = committed[epoch]
                yield f"t={c.t} {c.who} committed epoch {epoch} of {name}, as {first.who} had at t={first.t}"
            committed.setdefault(epoch, c)


def no_write_happens_twice(case: Case) -> Iterator[str]:
    """A put or commit whose answer was lost may not be done again over what others did since."""
    for name, changes in case.cells.items():
        first: dict[str, Change] = {}
        for c in changes:
            if not c.committed:
                continue
            claim = c.now["value_claim"]
            if claim in first:
                before = first[claim]
                yield f"t={c.t} {c.who} wrote {c.now['mark']} to {name} again, after t={before.t} and others since"
            first.setdefault(claim, c)


def nobody_is_taken_over_while_it_lives(case: Case) -> Iterator[str]:
    for name, changes in case.cells.items():
        for c in changes:
            if not c.ended_as("taken over"):
                continue
            holder, silent_s = c.before["holder"], c.t - c.before["t"]
            by_itself = holder == c.who  # an abandoned claim of its own
            if not (by_itself or case.dead(holder, c.t) or silent_s >= SILENCE_MIN * c.before["ttl_s"]):
                yield f"t={c.t} {c.who} took {name} from {holder}, alive and silent for only {silent_s:.2f} s"


def the_dead_are_replaced_soon(case: Case) -> Iterator[str]:
    """Who waits takes over at once where death can be proved, and elsewhere when the silence has lasted long enough.

    Judged only in worlds where nothing but death can hold anybody up.
    """
    facts = case.told.facts
    delays = [facts["rates"][name] for name in (*SILENT_RATES, "pause")]
    delays += [facts["strikes"][name] for name in ("pauses", "suspends", "partitions", "outages")]
    if any(delays):
        return
    places = {e["who"]: e for e in case.of["started"]}
    computes = {(e["who"], e["call"]): e["t"] for e in case.of["computing"]}
    answered = case.answers()

    def waits(e: Entry, t: float) -> bool:
        """Whether this ask is waiting at time `t`, neither answered nor computing itself."""
        call = (e["who"], e["call"])
        over = answered.get(call, case.gone.get(e["who"], (t,))[0])
        return bool(e["t"] <= t <= over and computes.get(call, t) >= t)

    for name, changes in case.cells.items():
        asks = [e for e in case.of["asked"] if e["key"] == changes[0].now["key"] and e.get("wait_s") is None]
        asks = [e for e in asks if (e["method"] == "lock") == name.startswith("locks/") and e["method"] in WAITING]
        for c in changes:
            if not c.ended_as("taken over") or not case.dead(c.before["holder"], c.t):
                continue
            holder = places[c.before["holder"]]
            free = max(case.gone[holder["who"]][0], c.before["t"])
            for e in (e for e in asks if waits(e, c.t)):
                near = holder["beacon"] and holder["boot"] == places[e["who"]]["boot"]
                at_once_s = POLL_S_MAX if facts["remote"] else AT_ONCE_S
                most_s = at_once_s if near else 1.1 * c.before["ttl_s"] * CLOCK_RATE_MAX + POLL_S_MAX
                waited_s = c.t - max(free, e["t"])
                if waited_s > most_s:
                    yield f"t={c.t} {e['who']} waited {waited_s:.2f} s for {name} of {holder['who']}, which was dead"


# --- computing once -------------------------------------------------------------------------------------


def each_hold_computes_once(case: Case) -> Iterator[str]:
    """Computations = 1 per key without faults, and never more than there were holds."""
    for key in sorted({e["key"] for e in case.of["computing"]}):
        computing = [e for e in case.of["computing"] if e["key"] == key]
        claims = [c for c in case.changes(key) if c.claimed]
        if len(computing) > len(claims):
            yield f"{key} was computed {len(computing)} times under {len(claims)} holds"
        if not case.faultless:
            continue
        failed = sum(1 for e in case.of["failed"] if e["key"] == key)
        epochs = 1 + max((c.now["epoch"] for c in case.changes(key)), default=0)
        raised = sum(1 for e in case.of["computing"] if e["key"] == key and _gave_up(case, e))
        if len(computing) > epochs + failed + raised:
            times = f"{len(computing)} times without faults"
            yield f"{key} was computed {times}, for {epochs} epochs and {failed} failures"


def _gave_up(case: Case, computing: Entry) -> bool:
    """Whether a computation ended because another key that it needed failed."""
    ended = {e["mark"] for what in ("computed", "failed") for e in case.of[what]}
    return computing["mark"] not in ended


def nothing_is_computed_that_is_there(case: Case) -> Iterator[str]:
    asked = {(e["who"], e["call"]): e for e in case.of["asked"]}
    for e in case.of["computing"]:
        ask = asked.get((e["who"], e["call"]))
        if ask is None or ask["method"] not in ("get_or_compute", "once"):
            continue
        then, now = case.had(e["key"], ask["t"] - 1e-6), case.state(e["key"], e["t"])
        if then is not None and then["epoch"] == now["epoch"]:
            here = f"t={e['t']} {e['who']} computes {e['key']}"
            yield f"{here}, whose value was there when it asked at t={ask['t']}"


def no_value_is_replaced_unasked(case: Case) -> Iterator[str]:
    """A new epoch begins by a claim only if somebody wants a recomputation, or the value has expired."""
    wanted = {(e["who"], e["key"]) for e in case.of["asked"] if e["method"] == "recompute"}
    for changes in case.cells.values():
        for c in changes:
            unasked = c.claimed and current(c.before) and (c.who, c.now["key"]) not in wanted
            if unasked and not case.may_be_expired(c.before, c.t):
                yield f"t={c.t} {c.who} began {c.name} anew, which had a value"


# --- reading --------------------------------------------------------------------------------------------


class Origin(NamedTuple):
    """Where a mark comes from."""

    key: str
    who: str
    epoch: int
    """Of the key when its computation began, or the one it was committed to."""
    committed: float | None
    """When it could first be seen."""
    said: Entry | None = None
    """The record that published it last."""


def readers_see_what_was_published(case: Case) -> Iterator[str]:
    origins = _origins(case)
    asked = {(e["who"], e["call"]): e for e in case.of["asked"]}
    unpublished = {(e["who"], e["key"]) for kind in ("unpublished", "refused") for e in case.of[f"event: {kind}"]}
    for e in case.of["returned"]:
        mark, key, t = e.get("mark"), e["key"], e["t"]
        ask = asked[e["who"], e["call"]]
        began = ask["t"]
        here = f"t={t} {e['who']} {e['method']}({key})"
        if ask.get("stale_ok") and any(c.now.get("mark") == mark for c in case.during(key, began, t)):
            continue  # the value that a recomputation was about to replace
        if mark is None:
            then, now = case.had(key, began - 1e-6), case.had(key, t)
            if e["method"] == "get" and then is not None and now is not None and then["epoch"] == now["epoch"]:
                yield f"{here} found nothing, though the value was there since before t={began}"
            elif e["method"] in ("get_or_compute", "once", "recompute"):
                yield f"{here} returned None"
            continue
        origin = origins.get(mark)
        if origin is None or origin.key != key:
            yield f"{here} returned {mark}, which is no value of that key"
            continue
        forgotten = [c for c in case.changes(key) if c.now["epoch"] > origin.epoch and c.t < began - 1e-6]
        if forgotten:
            over = f"over at t={forgotten[0].t}, before it asked at t={began}"
            yield f"{here} returned {mark} of epoch {origin.epoch}, {over}"
        said = origin.said
        if said is not None and "expires_s" in said:
            age_s = case.age_s(key, said["value_claim"], began)
            if age_s > said["expires_s"] + AGE_ERROR_S:
                yield f"{here} returned {mark}, {age_s:.1f} s old, which was to expire after {said['expires_s']} s"
        if origin.committed is None or origin.committed > t:
            if origin.who != e["who"]:
                yield f"{here} returned {mark}, which {origin.who} has not published"
            elif (e["who"], key) not in unpublished:
                yield f"{here} returned its own {mark}, which was not published, without saying so"


def _origins(case: Case) -> dict[str, Origin]:
    origins = {}
    for e in case.of["computing"]:
        origins[e["mark"]] = Origin(e["key"], e["who"], case.state(e["key"], e["t"]).get("epoch", 0), None)
    for e in case.of["putting"]:
        origins[e["mark"]] = Origin(e["key"], e["who"], 1 << 62, None)
    for changes in case.cells.values():
        for c in changes:
            if c.committed and c.now["mark"] in origins:
                made = origins[c.now["mark"]]
                first = c.t if made.committed is None else made.committed
                origins[c.now["mark"]] = made._replace(epoch=c.now["value_epoch"], committed=first, said=c.now)
    return origins


# --- locks ----------------------------------------------------------------------------------------------


def holds_never_overlap(case: Case) -> Iterator[str]:
    """Nobody's check passes once somebody else has the lock."""
    newest: dict[str, Entry] = {}
    for e in case.told.entries:
        if e["what"] == "locked":
            there = newest.get(e["lock"])
            if there is not None and there["generation"] == e["generation"]:
                both = f"{e['who']} and {there['who']}"
                yield f"t={e['t']} {both} both have generation {e['generation']} of {e['lock']}"
            if there is None or e["generation"] > there["generation"]:
                newest[e["lock"]] = e
        elif e["what"] == "checked" and e["generation"] < newest[e["lock"]]["generation"]:
            other = newest[e["lock"]]
            belief = f"{e['who']} believes in generation {e['generation']} of {e['lock']}"
            fact = f"{other['who']} has had {other['generation']} since t={other['t']}"
            yield f"t={e['t']} {belief}, though {fact}"


def no_increment_is_lost(case: Case) -> Iterator[str]:
    latest: dict[str, Entry] = {}
    for e in case.of["wrote"]:
        before = latest.get(e["lock"])
        expected = 1 + (before["value"] if before else 0)
        if e["value"] != expected:
            yield f"t={e['t']} {e['who']} wrote {e['value']} under {e['lock']}, where {expected} was due"
        if before and e["generation"] <= before["generation"]:
            late = f"with generation {e['generation']}, after a later one"
            yield f"t={e['t']} {e['who']} wrote under {e['lock']} {late}"
        latest[e["lock"]] = e


VERDICTS: Final[tuple[Verdict, ...]] = (
    every_wait_ended,
    nothing_crashed,
    errors_have_a_reason,
    everything_can_be_had_in_the_end,
    nothing_held_at_rest,
    numbers_never_go_back,
    one_commit_per_epoch,
    no_write_happens_twice,
    nobody_is_taken_over_while_it_lives,
    the_dead_are_replaced_soon,
    each_hold_computes_once,
    nothing_is_computed_that_is_there,
    no_value_is_replaced_unasked,
    readers_see_what_was_published,
    holds_never_overlap,
    no_increment_is_lost,
)
