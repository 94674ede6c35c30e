"""The ledger: every decision as one JSON line in git, folded into the state that the next run starts from.

Events are only ever appended; nothing is kept anywhere else that this file does not say. Kinds:

    ingest             a batch's shard joined the data set
    decision           PROMOTED, REJECTED or HELD, with the reason and the scores
    admit, drop        a person's answer to a HELD batch
    revoke             a person took an ingested batch out again
    forget             photos were taken out of every version of the data set, for good
    rollback           a person made an earlier champion the champion; freezes promotion
    freeze, unfreeze   promotion stops, and may go on
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from ssclass.data.batches import UNKNOWN, bare
from ssclass.errors import WorkspaceError
from ssclass.text import message, quoted, shown
from ssclass.workspace.bodies import BODIES, what_is_wrong

PROMOTED, REJECTED, SKIPPED, HELD = "PROMOTED", "REJECTED", "SKIPPED", "HELD"
"""What a retrain comes to, or what becomes of a batch."""

WAITING, INGESTED, HELD_BATCH = "waiting", "ingested", "held"
ADMITTED, DROPPED, REVOKED = "admitted", "dropped", "revoked"
"""Where a batch stands."""

VERSION = 1


@dataclass(frozen=True)
class Event:
    """One line. `at` is ISO 8601 in UTC; `body` holds what the kind needs (docs/formats.md lists it)."""

    kind: str
    at: str
    body: dict[str, Any]

    @classmethod
    def now(cls, kind: str, **body: Any) -> Event:
        """An event that happens now; its reason, which may quote what a sender wrote, is one line."""
        if isinstance(body.get("reason"), str):
            body["reason"] = message(body["reason"])
        return cls(kind, datetime.now(UTC).isoformat(timespec="seconds"), body)

    def line(self) -> str:
        """The event as it stands in ledger.jsonl."""
        return json.dumps({"version": VERSION, "event": self.kind, "at": self.at, **self.body}) + "\n"


@dataclass(frozen=True)
class Delivery:
    """One delivery of a batch that was decided on: when its marker was written, and a digest of its files.

    Both are None where the line is of a version that did not write them; contents also where they could not be read.
    unknown: whether it corrected photos that were not in the data set then.
    """

    marked: str | None = None
    contents: str | None = None
    unknown: bool = False


@dataclass
class State:
    """What the events add up to.

    `champion` is the decision key of the champion's run, None before the first promotion. `rolled_back`: a person put
    it in force, and promotion has not gone on since. `withdrawn`: champions that a person rolled back from, to an
    earlier one. A batch is held, admitted or dropped by (id, marker etag): sent again with another marker it is another
    case. `deliveries`: what was decided on, by id and etag, in order. `rewritten`: the etag that a marker had before a
    forgotten photo was taken out of it, by what it is now. `next_version` is the number of the next data version:
    revoked ones keep theirs.
    """

    champions: list[str] = field(default_factory=list)
    champion: str | None = None
    frozen: str | None = None
    rolled_back: bool = False
    withdrawn: set[str] = field(default_factory=set)
    decisions: dict[str, Event] = field(default_factory=dict)
    ingested: dict[str, Event] = field(default_factory=dict)
    held: dict[tuple[str, str], Event] = field(default_factory=dict)
    admitted: set[tuple[str, str]] = field(default_factory=set)
    dropped: set[tuple[str, str]] = field(default_factory=set)
    revoked: dict[str, Event] = field(default_factory=dict)
    deliveries: dict[str, dict[str, Delivery]] = field(default_factory=dict)
    rewritten: dict[tuple[str, str], str] = field(default_factory=dict)
    next_version: int = 1

    def apply(self, event: Event) -> None:
        """Take one event in."""
        body = event.body
        if event.kind in ("ingest", "drop") or body.get("decision") == HELD:
            self._deliver(body)
        self.next_version = max(self.next_version, (body.get("sequence") or 0) + 1)
        match event.kind:
            case "ingest":
                self.ingested[body["batch"]] = event
                self._settle(body["batch"])
            case "decision" if body["decision"] == HELD:
                self._settle(body["batch"])
                self.admitted -= self._cases(body["batch"], body["etag"])
                self.held[body["batch"], body["etag"]] = event
            case "decision":
                self.decisions[body["key"]] = event
                if body["decision"] == PROMOTED:
                    self.champion = body["key"]
                    self.champions.append(body["key"])
                    self.rolled_back = False
            case "admit":
                self.admitted.add((body["batch"], body["etag"]))
                self._settle(body["batch"])
            case "drop":
                self.dropped.add((body["batch"], body["etag"]))
                self._settle(body["batch"])
            case "revoke":
                self.revoked[body["batch"]] = event
            case "forget":
                self.rewritten |= {(batch, new): old for batch, old, new in body.get("markers", ()) if old != new}
            case "rollback":
                if body["key"] not in self.champions:
                    raise WorkspaceError(
                        f"ledger.jsonl: it rolls back to {quoted(body['key'])}, which was never promoted; restore the "
                        "line with `git checkout ledger.jsonl`"
                    )
                if self.champion is not None and self.number_of(self.champion) > self.number_of(body["key"]):
                    self.withdrawn.add(self.champion)
                self.withdrawn.discard(body["key"])
                self.champion = body["key"]
                self.rolled_back = True
                self.frozen = f"rolled back to version {body['number']}"
            case "freeze":
                self.frozen = body["reason"]
            case "unfreeze":
                self.frozen = None
                self.rolled_back = False

    def _deliver(self, body: dict[str, Any]) -> None:
        """Note the delivery that a line decides on; older lines tell its time in the etag of ``_SUCCESS`` alone."""
        of = self.deliveries.setdefault(body["batch"], {})
        marked = body.get("marked") or body["etag"].partition("@")[2] or None
        if body["etag"] not in of or body.get("marked"):
            refused = (body.get("receipt") or {}).get("refused")
            unknown = isinstance(refused, dict) and UNKNOWN in refused
            of[body["etag"]] = Delivery(marked, body.get("contents"), unknown)

    def _settle(self, batch: str) -> None:
        """Whatever was asked about a batch under earlier markers is no longer open."""
        for case in [case for case in self.held if case[0] == batch]:
            del self.held[case]

    def _cases(self, batch: str, etag: str) -> set[tuple[str, str]]:
        """The markers that are this delivery's: as it is, and as it was before a forgotten photo was taken out."""
        of, marker = self.deliveries.get(batch, {}), bare(etag)
        etags = {etag, marker} if marker in of and of[marker].marked is None else {etag}  # an older ledger has it bare
        while (before := self.rewritten.get((batch, etag))) is not None and before not in etags:
            etags.add(etag := before)
        return {(batch, each) for each in etags}

    def status(self, batch: str, etag: str) -> str:
        """Where a batch stands whose marker has this etag: WAITING, INGESTED, HELD, ADMITTED, DROPPED or REVOKED.

        docs/architecture.md draws the transitions. `etag`: as `ssclass.workspace.deliveries` gives it.
        """
        cases = self._cases(batch, etag)
        if batch in self.revoked:
            return REVOKED
        if batch in self.ingested:
            return INGESTED
        if cases & self.dropped:
            return DROPPED
        if cases & self.admitted:
            return ADMITTED
        return HELD_BATCH if cases & set(self.held) else WAITING

    def kept_out(self, batch: str, etag: str) -> bool:
        """Whether a person has dropped this delivery of a batch."""
        return bool(self._cases(batch, etag) & self.dropped)

    def taken_under_another_marker(self, batch: str, etag: str) -> bool:
        """Whether an id that was ingested (or revoked) now has another marker, and nobody was told of that yet."""
        told = self._cases(batch, etag)
        ingest = self.ingested.get(batch)
        return (
            ingest is not None
            and ingest.body["etag"] not in {known for _, known in told}
            and not told & (set(self.held) | self.dropped)
        )

    def undecided(self) -> list[str]:
        """List the batches of the data set that no decision names yet; a revoked one is not in the data set."""
        seen = {batch for event in self.decisions.values() for batch in event.body["batches"]}
        return [batch for batch in self.ingested if batch not in seen and batch not in self.revoked]

    def undecided_changes(self) -> list[str]:
        """List those of `undecided` that changed the data set, by photos or by corrections: they ask for a retrain."""
        return [batch for batch in self.undecided() if _changes(self.ingested[batch])]

    def record_of(self, key: str) -> tuple[int, int]:
        """Right and total of a model on photos that it had not learnt from: what is known of its accuracy.

        Its newest score on held-out photos (the set grows), and its cross-validation on the training split, without
        which a champion with few held-out photos could not hold anything.
        """
        folds = self.decisions[key].body.get("cross_validated", {"right": 0, "n": 0})
        right, n, _ = self.newest_score(key)
        return right + folds["right"], n + folds["n"]

    def newest_score(self, key: str) -> tuple[int, int, str]:
        """Right, total and data version of a model's newest score on held-out photos: as a candidate, or later."""
        own = self.decisions[key].body
        found = own["candidate"]["right"], own["holdout"]["size"], own.get("data_version", "")
        for event in self.decisions.values():
            body = event.body
            if body["champion"] and body["champion"]["key"] == key:
                found = body["champion"]["right"], body["holdout"]["size"], body.get("data_version", "")
        return found

    def decided_until(self, key: str) -> list[Event]:
        """The decisions up to that of a key, oldest first."""
        keys = list(self.decisions)
        return [self.decisions[each] for each in keys[: keys.index(key) + 1]]

    def number_of(self, key: str) -> int:
        """The how-manyth champion a decision key became: 1 for the first."""
        return self.champions.index(key) + 1


def _changes(ingest: Event) -> bool:
    """Whether a batch changed the data set; events without a receipt are of a version that told nothing of it."""
    receipt = ingest.body.get("receipt")
    return receipt is None or any(receipt.get(name) for name in ("accepted", "relabelled", "removed"))


def parse(text: str, name: str = "ledger.jsonl") -> list[Event]:
    """Read a ledger; WorkspaceError names the line that cannot be read."""
    events = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():  # an editor's
            continue
        try:
            events.append(_event(line))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise WorkspaceError(
                f"{name}: line {number} is not a ledger event ({shown(str(error))}); restore it with "
                f"`git checkout {name}`"
            ) from error
        except WorkspaceError as error:
            raise WorkspaceError(f"{name}: line {number} {error}") from error
    return events


@lru_cache(100_000)
def _event(line: str) -> Event:
    """The event of a line. Each commit of a process has the lines of the one before: they are read once.

    Errors of json, or ValueError, say what is wrong with it; WorkspaceError says that it is of a newer version.
    """
    body = json.loads(line)
    version, kind, at = body.pop("version"), str(body.pop("event")), str(body.pop("at"))
    if version != VERSION or kind not in BODIES:
        raise WorkspaceError(
            f"is a {quoted(kind)} of version {shown(version)}, written by a newer ssclass; upgrade this one"
        )
    if (wrong := what_is_wrong(kind, body)) is not None:
        raise ValueError(wrong)
    return Event(kind, at, body)


def fold(events: Iterable[Event]) -> State:
    """The state after all events, in order; WorkspaceError when one puts back a champion that there never was."""
    state = State()
    for event in events:
        state.apply(event)
    return state
