"""The bugs that `stress.mutants` plants: one for each way to break a promise that somebody might really slip into.

`old` occurs exactly once in its file; a bug whose place has changed is stale, and `tests/test_mutants.py` says so.
"""

from __future__ import annotations

from typing import Final, NamedTuple


class Mutant(NamedTuple):
    name: str
    promise: str
    """What breaks, as a promise of dibs."""
    file: str
    """Below `src/dibs`."""
    old: str
    new: str
    command: str
    """The tests that must see it: a selection for pytest, or a run of `dibs simulate`."""


ONE_COMMIT: Final = "one commit per key and epoch"
NUMBERS_GROW: Final = "generations and epochs only grow"
ONE_STEP: Final = "one step decides"
WHOLE_VALUES: Final = "a reader never sees half a value"
SILENCE: Final = "a holder gives up before others act"
NO_RESTART: Final = "what was observed outlives the call"
THREE_OUTCOMES: Final = "a write is done, refused or unknown"
PROOF_OF_DEATH: Final = "only the dead are proved dead"
FORKS: Final = "a forked child owns nothing"
NO_HANGS: Final = "nothing hangs for ever"
NOBODY_GETS_IN: Final = "nobody gets in"
NOT_IGNORED: Final = "nothing is silently ignored"
ECONOMY: Final = "each key is computed once"
RIGHT_KEYS: Final = "equal meaning, equal key; other code or other content, another key"

SIMULATE: Final = "dibs simulate --seeds 100"

MUTANTS: Final = (
    # --- the commit is the guarantee ---
    Mutant(
        "commit-into-a-later-epoch", ONE_COMMIT, "cell.py",
        "return cell.epoch == epoch and current(cell) is None",
        "return current(cell) is None",
        SIMULATE,
    ),
    Mutant(
        "commit-over-a-value", ONE_COMMIT, "cell.py",
        "return cell.epoch == epoch and current(cell) is None",
        "return cell.epoch == epoch",
        SIMULATE,
    ),
    # --- one step decides ---
    Mutant(
        "local-swap-without-its-guard", ONE_STEP, "stores/local.py",
        "            self._guards.lock(guard, root.fd)\n            if old is None:",
        "            if old is None:",
        "pytest tests/test_local.py -k increments",
    ),
    Mutant(
        "local-swap-compares-no-version", ONE_STEP, "stores/local.py",
        "if slot is None or slot.version != old:",
        "if slot is None:",
        "pytest tests/test_conformance.py",
    ),
    # --- numbers only grow ---
    Mutant(
        "release-forgets-the-generation", NUMBERS_GROW, "cell.py",
        'return cell._replace(hold=None, trail=_ended(cell, "released"))',
        'return cell._replace(generation=0, hold=None, trail=_ended(cell, "released"))',
        SIMULATE,
    ),
    Mutant(
        "take-over-keeps-the-generation", NUMBERS_GROW, "cell.py",
        "        generation=cell.generation + 1,\n        hold=hold,\n        failures=failures if",
        "        generation=cell.generation,\n        hold=hold,\n        failures=failures if",
        SIMULATE,
    ),
    Mutant(
        "forget-keeps-the-epoch", NUMBERS_GROW, "cell.py",
        "return cell._replace(epoch=cell.epoch + 1, hold=None, value=None, failures=None, trail=trail)",
        "return cell._replace(hold=None, value=None, failures=None, trail=trail)",
        SIMULATE,
    ),
    Mutant(
        "healing-starts-at-0", NUMBERS_GROW, "cells.py",
        "floor = raise_floor(self.store, self.runtime)",
        "floor = 0",
        "pytest tests/test_card.py",
    ),
    # --- a reader never sees half a value ---
    Mutant(
        "blob-comes-after-the-commit", WHOLE_VALUES, "values.py",
        "        self._blobs.upload(blob, source)\n",
        '        self._runtime.start(lambda: self._blobs.upload(blob, io.BytesIO(encoded.joined())), "upload")\n'
        "        while source.read(1 << 20):\n            pass\n",
        SIMULATE,
    ),
    Mutant(
        "record-check-not-verified", WHOLE_VALUES, "record.py",
        'if blake3(b"1" + body).hexdigest(16).encode() == data[_CHECK_AT : _CHECK_AT + 32]:',
        "if body:",
        "pytest tests/test_record.py",
    ),
    Mutant(
        "value-digest-not-verified", WHOLE_VALUES, "values.py",
        "if len(content) != value.size_bytes or found != value.digest:",
        "if len(content) != value.size_bytes:",
        "pytest tests/test_once.py",
    ),
    Mutant(
        "missing-blob-is-damage-at-once", WHOLE_VALUES, "values.py",
        "if again == value:",
        "if again is not None:",
        "pytest tests/test_promises.py",
    ),
    # --- no decision compares clocks ---
    Mutant(
        "deadline-counts-from-the-answer-of-a-claim", SILENCE, "hold.py",
        "        self.generation, self.epoch = self._seen.cell.generation, self._seen.cell.epoch\n",
        "        self.generation, self.epoch = self._seen.cell.generation, self._seen.cell.epoch\n"
        "        self._marks = runtime.elapsed_marks()\n",
        "pytest tests/test_hold.py",
    ),
    Mutant(
        "deadline-counts-from-the-answer-of-a-beat", SILENCE, "hold.py",
        "        self._marks = marks\n",
        "        self._marks = self._runtime.elapsed_marks()\n",
        "pytest tests/test_promises.py",
    ),
    Mutant(
        "silence-of-half-a-ttl", SILENCE, "liveness.py",
        "return min(max(ttl_s, TTL_MIN_S), TTL_MAX_S) * SILENCE_PER_TTL",
        "return min(max(ttl_s, TTL_MIN_S), TTL_MAX_S) * 0.5",
        SIMULATE,
    ),
    Mutant(
        "silence-counts-from-the-start-of-the-wait", SILENCE, "contend.py",
        "self._noted = (version, now)",
        "self._noted = (version, self._began)",
        SIMULATE,
    ),
    Mutant(
        "sightings-are-not-shared", NO_RESTART, "runtime/sightings.py",
        "shared = self._read(path, version, now)",
        "shared = None",
        "pytest tests/test_runtime_ends.py",
    ),
    # --- three outcomes ---
    Mutant(
        "lost-answer-read-as-lost", THREE_OUTCOMES, "cells.py",
        "            if record is not None and _attempt_of(record) == attempt:\n"
        "                return Seen(cell, record.version, attempt)\n            raise",
        "            raise",
        "pytest tests/test_cells.py",
    ),
    Mutant(
        "second-answer-read-as-lost", THREE_OUTCOMES, "cells.py",
        "        if record is not None and _attempt_of(record) == attempt:\n"
        "            return Seen(cell, record.version, attempt)\n        raise",
        "        raise",
        "pytest tests/test_promises.py",
    ),
    Mutant(
        "lost-answer-taken-for-done", THREE_OUTCOMES, "cells.py",
        "return self._settle(name, seen, cell, attempt, data, patience_s, error)",
        "return Seen(cell, seen.version, attempt)",
        SIMULATE,
    ),
    Mutant(
        "sdk-sends-records-again", THREE_OUTCOMES, "stores/s3_client.py",
        "attempts_max = 1\n",
        "attempts_max = 4\n",
        "pytest tests/test_s3_outcomes.py",
    ),
    Mutant(
        "409-read-as-conflict", THREE_OUTCOMES, "stores/s3.py",
        'condition, refused = {"IfNoneMatch": "*"}, {412}\n        else:\n'
        '            condition, refused = {"IfMatch": self._etag(old)}, {404, 412}',
        'condition, refused = {"IfNoneMatch": "*"}, {409, 412}\n        else:\n'
        '            condition, refused = {"IfMatch": self._etag(old)}, {404, 409, 412}',
        "pytest tests/test_s3_outcomes.py",
    ),
    Mutant(
        "requests-outlast-a-beat", THREE_OUTCOMES, "cache.py",
        "        store.limit_requests(self.settings.beat)\n",
        "",
        "pytest tests/test_promises.py",
    ),
    # --- proof of death ---
    Mutant(
        "beacon-of-any-inode", PROOF_OF_DEATH, "runtime/beacon.py",
        "if not stat.S_ISREG(status.st_mode) or (inode is not None and identity(status) != inode):",
        "if not stat.S_ISREG(status.st_mode):",
        "pytest tests/test_runtime_beacons.py",
    ),
    Mutant(
        "stopped-read-as-dead", PROOF_OF_DEATH, "runtime/process.py",
        'if state in "ZX":',
        'if state in "ZXT":',
        "pytest tests/test_runtime_beacons.py",
    ),
    Mutant(
        "another-boot-read-as-this-one", PROOF_OF_DEATH, "runtime/system.py",
        "if not holder.boot or holder.boot != self._boot:",
        "if not holder.boot:",
        "pytest tests/test_runtime_beacons.py",
    ),
    Mutant(
        "helper-beats-for-a-stopped-holder", NO_HANGS, "beater/beating.py",
        "or now >= notice.over_at or self._holder.paused()",
        "or now >= notice.over_at",
        "pytest tests/test_beater.py -k prolongs",
    ),
    Mutant(
        "helper-outlives-its-holder", NO_HANGS, "beater/beating.py",
        "if self._holder.pidfd in woken or self._dismissed(woken) or self._holder.gone():",
        "if self._dismissed(woken):",
        "pytest tests/test_beater.py -k ends_with",
    ),
    Mutant(
        "helper-beats-without-the-claim", NO_HANGS, "beater/beating.py",
        "not table.holds(seen.cell, watched.claim)",
        "seen.cell.hold is None",
        "pytest tests/test_beater.py -k never_touches",
    ),
    Mutant(
        "helper-undoes-what-others-changed", ONE_STEP, "beater/beating.py",
        "watched.clean and before is not None and _but_hold(cell) == _but_hold(before.cell)",
        "True",
        "pytest tests/test_beater.py -k undone",
    ),
    Mutant(
        "helper-counts-from-the-answer", SILENCE, "beater/beating.py",
        "            watched.beaten_at = marks[0]\n",
        "            marks = self._runtime.elapsed_marks()\n            watched.beaten_at = marks[0]\n",
        "pytest tests/test_beater.py -k deadline",
    ),
    # --- forks ---
    Mutant(
        "child-releases-for-its-parent", FORKS, "hold.py",
        "return self._runtime.process() == self.process",
        "return True",
        "pytest tests/test_fork.py",
    ),
    Mutant(
        "child-unlocks-the-beacon", FORKS, "runtime/system.py",
        "beacon.close()  # only closed: unlocking would unlock the parent",
        "__import__('fcntl').flock(beacon.fd, 8)",
        "pytest tests/test_runtime_beacons.py",
    ),
    # --- nothing hangs ---
    Mutant(
        "circles-not-looked-for", NO_HANGS, "contend.py",
        "circle = self._contender.circle_from(self.seen.cell)",
        "circle = None",
        "pytest tests/test_once.py -k circle",
    ),
    Mutant(
        "hold-max-ignored", NO_HANGS, "hold.py",
        "return self.terms.hold_max_s is not None and self.held_s >= self.terms.hold_max_s",
        "return False",
        "pytest tests/test_hold.py",
    ),
    Mutant(
        "wait-s-ignored", NO_HANGS, "contend.py",
        'return float("inf") if self._wait_s is None else self._wait_s - self._waited_s()',
        'return float("inf")',
        "pytest tests/test_once.py -k wait_s",
    ),
    # --- nobody gets in, nothing is ignored ---
    Mutant(
        "names-not-escaped", NOBODY_GETS_IN, "names.py",
        'escaped = quote(text, safe="=,+@", errors="surrogatepass").replace("~", "%7E") or "%"',
        'escaped = text.replace("~", "%7E") or "%"',
        "pytest tests/test_names.py",
    ),
    Mutant(
        "pickle-loaded-where-refused", NOBODY_GETS_IN, "codec/__init__.py",
        '            self._refuse_unsafe("the stored value is a pickle")\n',
        "",
        "pytest tests/test_codec_damage.py",
    ),
    Mutant(
        "newer-format-healed", NOT_IGNORED, "record.py",
        "if not colon or not number.isdigit() or number == b\"%d\" % FORMAT:",
        "if True:",
        "pytest tests/test_cells.py",
    ),
    Mutant(
        "probe-without-if-match", NOT_IGNORED, "probe.py",
        "    _must_refuse(store, lambda: store.swap(name, first, body[3]), "
        '"it ignores If-Match (change only from this version)")\n',
        "",
        "pytest tests/test_probe.py",
    ),
    # --- large values ---
    Mutant(
        "mapped-where-others-can-write", NOBODY_GETS_IN, "values.py",
        'return getattr(self._blobs, "private", False)',
        "return True",
        "pytest tests/test_large_values.py -k others",
    ),
    Mutant(
        "verified-whatever-changed", WHOLE_VALUES, "values.py",
        ":{status.st_mtime_ns}:{status.st_ctime_ns}",
        "",
        "pytest tests/test_large_values.py -k changed",
    ),
    Mutant(
        "children-write-to-loaded-arrays", FORKS, "runtime/memory.py",
        "mmap.mmap(-1, size_bytes, flags=_PRIVATE)",
        "mmap.mmap(-1, size_bytes)",
        "pytest tests/test_large_values.py -k children",
    ),
    Mutant(
        "ranges-of-any-object", WHOLE_VALUES, "stores/s3_download.py",
        "if self._etag else {}",
        "if False else {}",
        "pytest tests/test_s3_blobs.py -k ranges",
    ),
    Mutant(
        "living-uploads-cleared-away", WHOLE_VALUES, "stores/local_folder.py",
        "fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)\n            except BlockingIOError:  # whoever",
        "pass\n            except BlockingIOError:  # whoever",
        "pytest tests/test_local.py -k killed",
    ),
    Mutant(
        "all-parts-read-ahead", NO_HANGS, "stores/s3_blobs.py",
        "        crew.wait_for_room()\n",
        "",
        "pytest tests/test_s3_blobs.py -k four_parts",
    ),
    Mutant(
        "unsigned-values-are-believed", NOBODY_GETS_IN, "values.py",
        "        if self._signer is None:\n            return\n",
        "        if self._signer is None or value.signature is None:\n            return\n",
        "pytest tests/test_signing.py",
    ),
    Mutant(
        "blobs-of-open-epochs-are-swept", WHOLE_VALUES, "sweep.py",
        "return cell.epoch > epoch or (",
        "return cell.epoch >= epoch or (",
        "pytest tests/test_sweep.py",
    ),
    # --- keys ---
    Mutant(
        "order-of-a-dict-counts", RIGHT_KEYS, "digest/walk.py",
        "ordered = sorted(names)",
        "ordered = list(names)",
        "pytest tests/test_digest.py",
    ),
    Mutant(
        "order-of-a-set-counts", RIGHT_KEYS, "digest/walk.py",
        "return _strs(sorted(items))",
        "return _strs(list(items))",
        "pytest tests/test_digest_processes.py",
    ),
    Mutant(
        "helpers-do-not-count", RIGHT_KEYS, "identity/graph.py",
        "            self._globals(function.__globals__, uses, meanings)\n",
        "            pass\n",
        "pytest tests/test_identity.py",
    ),
    Mutant(
        "closures-do-not-count", RIGHT_KEYS, "identity/graph.py",
        "        self._closure(function, uses, of, meanings)\n",
        "",
        "pytest tests/test_identity.py tests/test_explain.py",
    ),
    Mutant(
        "classes-of-arguments-do-not-count", RIGHT_KEYS, "memoize/recipe.py",
        'if met and self._deps == "project":',
        "if False:",
        "pytest tests/test_memoize.py",
    ),
    Mutant(
        "retag-is-not-heard", RIGHT_KEYS, "memoize/versions.py",
        "found = (version.stands_for if version is not None else None) or digest",
        "found = digest",
        "pytest tests/test_memoize.py tests/test_explain.py",
    ),
    # --- the economy ---
    Mutant(
        "no-flight-is-shared", ECONOMY, "flights.py",
        "flight = self._flights.setdefault(name, mine)\n",
        "flight = self._flights[name] = mine\n",
        "pytest tests/test_promises.py",
    ),
    Mutant(
        "heartbeat-stops-after-the-first", ECONOMY, "heartbeat.py",
        "hold.due_at = self._runtime.monotonic() + next_s",
        "hold.due_at = self._runtime.monotonic() + 1e9",
        SIMULATE,
    ),
    Mutant(
        "failure-returns-none", ECONOMY, "once.py",
        "            self.give_up(hold, error)\n            raise\n",
        "            self.give_up(hold, error)\n            return None\n",
        "pytest tests/test_once.py",
    ),
    Mutant(
        "failure-not-counted", ECONOMY, "once.py",
        "hold.fail(text := _text_of(error))",
        "text = _text_of(error)\n                hold.release()",
        "pytest tests/test_once.py",
    ),
)  # fmt: skip
