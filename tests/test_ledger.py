"""The ledger: events in, state out; what a person reads when it is damaged."""

import json

import pytest

from ssclass.errors import WorkspaceError
from ssclass.workspace.ledger import Event, fold, parse

SCORES = {"reason": "better", "batches": [], "candidate": {"right": 1}, "champion": None, "holdout": {"size": 2}}


def decision(key, verdict):
    return Event("decision", "2026-01-01T00:00:00+00:00", {"decision": verdict, "key": key, **SCORES})


def event(kind, **body):
    return Event(kind, "2026-01-01T00:00:00+00:00", body)


def test_events_survive_the_file():
    events = [decision("a", "PROMOTED"), event("freeze", reason="holiday")]
    assert parse("".join(each.line() for each in events)) == events


def test_champion_is_the_last_promoted_or_rolled_back_to():
    events = [decision("a", "PROMOTED"), decision("b", "REJECTED"), decision("c", "PROMOTED")]
    assert fold(events).champion == "c"
    state = fold([*events, event("rollback", key="a", number=1)])
    assert (state.champion, state.frozen) == ("a", "rolled back to version 1")
    assert state.champions == ["a", "c"]
    assert fold([*events, event("rollback", key="a", number=1), event("unfreeze")]).frozen is None
    assert state.number_of("c") == 2


def test_the_newest_score_of_a_champion_is_that_of_the_last_comparison():
    first = decision("a", "PROMOTED")
    assert fold([first]).newest_score("a") == (1, 2, "")
    later = {"champion": {"key": "a", "right": 5}, "holdout": {"size": 6}, "data_version": "data/2"}
    second = Event("decision", first.at, {**decision("b", "REJECTED").body, **later})
    assert fold([first, second]).newest_score("a") == (5, 6, "data/2")
    assert fold([first, second]).newest_score("b") == (1, 6, "data/2")


def test_a_held_batch_waits_for_a_person():
    held = event("decision", decision="HELD", batch="x", etag="1", reason="flipped")
    assert list(fold([held]).held) == [("x", "1")]
    admitted = fold([held, event("admit", batch="x", etag="1")])
    assert ("x", "1") in admitted.admitted
    assert (admitted.status("x", "1"), list(admitted.held)) == ("admitted", []), "it is answered"
    assert not fold([held, event("admit", batch="x", etag="1"), event("ingest", batch="x", etag="1")]).held
    dropped = fold([held, event("drop", batch="x", etag="1")])
    assert not dropped.held
    assert ("x", "1") in dropped.dropped


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("not json", "line 2 is not a ledger event"),
        ('{"event": "freeze"}', "line 2 is not a ledger event"),
        ('{"version": 1, "event": "ingest", "at": "x", "batch": {}, "etag": "1", "sequence": 1}', "line 2 .*batch: "),
        (
            '{"version": 1, "event": "ingest", "at": "x", "batch": "a", "etag": "1", "sequence": "2"}',
            "line 2 .*sequence: ",
        ),
        ('{"version": 1, "event": "forget", "at": "x", "markers": [["a"]]}', r"line 2 .*markers\.0"),
        (decision("k", "PROMOTED").line().replace('"champion": null', '"champion": {"key": "j"}'), r"champion\.right"),
        (json.dumps({"version": 9, "event": "freeze", "at": "x"}), "newer ssclass"),
        (json.dumps({"version": 1, "event": "teleport", "at": "x"}), "newer ssclass"),
    ],
)
def test_a_damaged_line_is_named(line, said):
    with pytest.raises(WorkspaceError, match=said):
        parse(event("unfreeze").line() + line + "\n")


def test_a_rollback_to_what_was_never_promoted_is_refused():
    with pytest.raises(WorkspaceError, match="rolls back to 'b', which was never promoted"):
        fold([decision("a", "PROMOTED"), event("rollback", key="b", number=2)])


def test_what_is_known_of_a_champion_grows_with_the_held_out_set():
    def scored(key, verdict, candidate, champion, n, **more):
        return event(
            "decision",
            decision=verdict,
            key=key,
            candidate={"right": candidate},
            champion=champion,
            holdout={"size": n},
            **more,
        )

    first = scored("a", "PROMOTED", 5, None, 5, cross_validated={"right": 50, "n": 59})
    assert fold([first]).record_of("a") == (55, 64)
    later = scored("b", "REJECTED", 7, {"key": "a", "right": 8}, 9)
    assert fold([first, later]).record_of("a") == (58, 68)


def test_one_rule_says_what_is_not_decided_yet():
    """A revoked batch is not; one that brought nothing is named with the next decision, but asks for none."""

    def ingest(batch, **receipt):
        return event("ingest", batch=batch, etag="1", receipt=receipt)

    events = [
        ingest("photos", accepted=3),
        ingest("corrections", accepted=0, relabelled=2),
        ingest("removals", accepted=0, removed=1),
        ingest("copies", accepted=0, duplicates=9),
        ingest("gone", accepted=5),
        event("revoke", batch="gone", etag="1"),
    ]
    state = fold(events)
    assert state.undecided() == ["photos", "corrections", "removals", "copies"]
    assert state.undecided_changes() == ["photos", "corrections", "removals"]
    decided = event("decision", decision="REJECTED", key="k", batches=state.undecided())
    assert fold([*events, decided]).undecided() == []
