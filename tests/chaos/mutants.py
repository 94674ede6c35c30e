"""Mutants: the product with one cure taken out, and the test that must notice: ``python -m tests.chaos.mutants``.

Each is a replacement of text in a copy of the tree. A mutant that lives, and a text that is no longer there, are told.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from ssclass.settings import CHECKOUT

GUARANTEES = "tests/test_guarantees.py"


@dataclass(frozen=True)
class Mutant:
    """In `file`, `old` becomes `new`; `test` fails then."""

    name: str
    file: str
    old: str
    new: str
    test: str


MUTANTS = (
    Mutant(
        "gate comparison reversed",
        "ssclass/retrain/gate.py",
        "net >= params.min_net_wins",
        "net <= params.min_net_wins",
        "tests/test_gate.py",
    ),
    Mutant(
        "receipt check dropped",
        "ssclass/retrain/ingest.py",
        "if (done := _done_already(change.version.state, ref)) is not None:",
        "if (done := _done_already(change.version.state, ref)) is not None and False:",
        f"{GUARANTEES}::test_a_batch_that_another_machine_takes_in_meanwhile_is_taken_once",
    ),
    Mutant(
        "force-push",
        "ssclass/workspace/transaction.py",
        'f"{commit}:refs/heads/main"',
        'f"+{commit}:refs/heads/main"',
        "tests/test_workspace.py::test_of_two_writers_one_wins_and_the_other_starts_over",
    ),
    Mutant(
        "split hash changed",
        "ssclass/data/split.py",
        'f"split:{group}"',
        'f"side:{group}"',
        f"{GUARANTEES}::test_the_side_of_a_group_is_for_ever",
    ),
    Mutant(
        "guard off",
        "ssclass/retrain/ingest.py",
        'test["p"] < params.ingest.implausible',
        'test["p"] < 0',
        f"{GUARANTEES}::test_held_and_corrected_is_ingested_and_no_longer_held",
    ),
    Mutant(
        "clean-up before the push",
        "ssclass/upkeep/forget.py",
        "    rewritten = change.add_shards(*made) if made else {}",
        "    for md5 in md5s:\n        workspace.objects.erase(md5)\n"
        "    rewritten = change.add_shards(*made) if made else {}",
        f"{GUARANTEES}::test_a_forget_whose_push_fails_has_deleted_nothing",
    ),
    Mutant(
        "clean-up without a look in the ledger",
        "ssclass/tracking/publish.py",
        'if run_id not in {event.body["run_id"] for event in events}:',
        "if events is not None:",
        f"{GUARANTEES}::test_a_run_that_the_ledger_names_is_never_thrown_away",
    ),
    Mutant(
        "retry inside a transaction",
        "ssclass/workspace/workspace.py",
        "                    return task(change)\n",
        "                    for last in (False, True):\n"
        "                        try:\n"
        "                            return task(change)\n"
        "                        except Exception:\n"
        "                            if last:\n"
        "                                raise\n",
        f"{GUARANTEES}::test_git_commit_fails_and_nothing_is_written_twice",
    ),
    Mutant(
        "nothing is put back after a failure",
        "ssclass/workspace/workspace.py",
        "                if change.commit is None:\n",
        "                if change.commit == 0:\n",
        f"{GUARANTEES}::test_git_commit_fails_and_nothing_is_written_twice",
    ),
    Mutant(
        "gc by state",
        "ssclass/upkeep/garbage.py",
        "run.info.run_id in named, key in kept",
        "run.info.run_id in named, key is not key",
        f"{GUARANTEES}::test_gc_keeps_a_champions_model_whatever_became_of_its_run",
    ),
    Mutant(
        "a key without the champion",
        "ssclass/retrain/key.py",
        'return _hex(" ".join([training, champion or "no champion", *([FROZEN] if frozen else [])]))',
        'return _hex(" ".join([training, *([FROZEN] if frozen else [])]))',
        f"{GUARANTEES}::test_a_state_that_was_left_and_comes_back_is_asked_about_again",
    ),
    Mutant(
        "a key without the freeze",
        "ssclass/retrain/key.py",
        "*([FROZEN] if frozen else [])",
        "*([FROZEN] if frozen is None else [])",
        f"{GUARANTEES}::test_rejected_while_frozen_is_asked_again_after_unfreeze",
    ),
    Mutant(
        "the alias without another look at origin",
        "ssclass/tracking/publish.py",
        "if newest.champion == state.champion:",
        "if newest is not None:",
        f"{GUARANTEES}::test_rolled_back_elsewhere_between_push_and_alias",
    ),
    Mutant(
        "only the newest decision is concluded",
        "ssclass/tracking/publish.py",
        'if key != newest and event.body["run_id"] not in open_runs:',
        "if key != newest:",
        f"{GUARANTEES}::test_killed_after_the_push_and_a_new_batch_before_the_next_run",
    ),
    Mutant(
        "another machine's open run is thrown away",
        "ssclass/tracking/runs.py",
        "and run.data.tags.get(OWNER_TAG) == owner:",
        "and owner:",
        f"{GUARANTEES}::test_another_machines_open_run_is_left_alone",
    ),
    Mutant(
        "a relative rollback",
        "ssclass/upkeep/decisions.py",
        "(in_force if state.rolled_back else in_force - 1)",
        "(in_force - 1)",
        f"{GUARANTEES}::test_a_rollback_without_mlflow_moves_once_however_often_it_is_given",
    ),
    Mutant(
        "held under an older marker for ever",
        "ssclass/workspace/ledger.py",
        "for case in [case for case in self.held if case[0] == batch]:",
        "for case in [case for case in self.held if case[0] is batch[:0]]:",
        f"{GUARANTEES}::test_held_and_corrected_is_ingested_and_no_longer_held",
    ),
    Mutant(
        "a marker that was written again with the same bytes is the same one",
        "ssclass/workspace/deliveries.py",
        "delivery.marked in (None, ref.time)",
        "delivery.marked is not ref",
        f"{GUARANTEES}::test_success_markers_are_told_apart_though_their_etag_is_always_the_same",
    ),
    Mutant(
        "photos that were replaced under their names are the same delivery",
        "ssclass/data/batches.py",
        "[[found.key.removeprefix(ref.prefix), found.etag] for found in there]",
        "[[found.key.removeprefix(ref.prefix), found.size > 0] for found in there]",
        f"{GUARANTEES}::test_photos_replaced_in_equal_number_and_marked_again_are_another_delivery",
    ),
    Mutant(
        "a drop is not seen by who takes the batch in",
        "ssclass/retrain/ingest.py",
        "if change.version.state.kept_out(ref.id, ref.etag):",
        "if change is None:",
        f"{GUARANTEES}::test_a_batch_that_a_person_drops_while_it_is_taken_in_stays_out",
    ),
    Mutant(
        "a forgetting knows a manifest by its bytes alone",
        "ssclass/upkeep/finish.py",
        "markers.append([ref.id, ref.etag, etag])",
        'markers.append([ref.id, ref.etag.partition("@")[0], etag])',
        f"{GUARANTEES}::test_a_delivery_that_lost_a_forgotten_photo_is_not_taken_for_the_one_dropped_before_it",
    ),
    Mutant(
        "a correction that was so already is forgotten",
        "ssclass/data/dataset.py",
        "of.relabel | of.relabel_again, (*of.remove, *of.remove_again)",
        "of.relabel, of.remove",
        f"{GUARANTEES}::test_a_correction_that_two_batches_give_stays_when_one_is_revoked",
    ),
    Mutant(
        "corrections of held photos are consumed",
        "ssclass/retrain/ingest.py",
        "if not unknown or not others:",
        "if unknown or not others:",
        f"{GUARANTEES}::test_corrections_of_photos_in_a_held_batch_wait_for_it",
    ),
)


def lives(mutant: Mutant) -> str | None:
    """What pytest said where the test passes all the same; None where it noticed. AssertionError without the text."""
    with TemporaryDirectory(prefix="mutant-") as folder:
        root = Path(folder)
        for name in ("ssclass", "flows", "tasks", "tests"):
            shutil.copytree(CHECKOUT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("pyproject.toml", "data.dvc", "dvc.yaml"):
            shutil.copy(CHECKOUT / name, root / name)
        path = root / mutant.file
        text = path.read_text()
        assert text.count(mutant.old) == 1, f"{mutant.name}: {mutant.file} no longer has {mutant.old!r} once"
        path.write_text(text.replace(mutant.old, mutant.new))
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", mutant.test]
        environment = os.environ | {"PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
        return done.stdout[-3000:] if done.returncode != 1 else None  # 1: tests ran, and some failed


if __name__ == "__main__":
    wanted = [mutant for mutant in MUTANTS if not sys.argv[1:] or mutant.name in sys.argv[1:]]
    alive = 0
    for each in wanted:
        said = lives(each)
        alive += said is not None
        print(f"{'LIVES' if said else 'noticed'}: {each.name} ({each.test})", flush=True)
        if said:
            print(said)
    sys.exit(alive > 0)
