"""What must be true after every story, whatever happened in it: one function, which believes nobody's word.

The ledger is folded here anew, from its lines; data set, tags, objects, runs, versions and alias are held against it.
Findings are sorted by what they would cost: `losses`, `doubles`, `wrong champions`, `others`.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

LOSSES, DOUBLES, CHAMPIONS, OTHERS = KINDS = ("losses", "doubles", "wrong champions", "others")


class Findings(dict[str, list[str]]):
    """Sentences, by kind."""

    def __init__(self) -> None:
        super().__init__({kind: [] for kind in KINDS})

    def say(self, kind: str, wrong: object, sentence: str) -> None:
        if wrong:
            self[kind].append(sentence)


def check(folders: list[str], sent: dict[str, dict[str, str]], forgotten: list[str]) -> dict[str, list[str]]:
    """Look at everything that these clones of one origin left, and say what is wrong.

    `sent`: batch → sha256 → label, of every delivery under that id. `forgotten`: photos that must be nowhere. The
    last command before this was a retrain that ended well.
    """
    from ssclass.cli.common import workspace_at

    found = Findings()
    workspace = workspace_at(Path(folders[0]))
    version = workspace.newest()
    lines = [json.loads(line) for line in version.text("ledger.jsonl").splitlines()]
    champion = _ledger(found, lines)
    _git(found, workspace, folders, lines)
    _data(found, workspace, version, lines, sent, forgotten)
    _objects(found, workspace, version, champion)
    _mlflow(found, workspace, lines, champion)
    _verify(found, workspace)
    return found


def told(folder: str) -> dict[str, Any]:
    """What a person may want to know: champion, number, frozen, states of batches, photos."""
    from ssclass.cli.common import workspace_at
    from ssclass.data.batches import list_batches

    workspace = workspace_at(Path(folder))
    version = workspace.newest()
    state = version.state
    return {
        "champion": state.champion,
        "number": state.number_of(state.champion) if state.champion else None,
        "champions": len(state.champions),
        "frozen": state.frozen,
        "events": [event.kind for event in version.events],
        "batches": {ref.id: state.status(ref.id, ref.etag) for ref in list_batches(workspace.store)},
        "photos": [row.sha256 for row in version.dataset.rows],
    }


def _ledger(found: Findings, lines: list[dict[str, Any]]) -> str | None:
    """Fold the lines once more; the decision key of the champion."""
    champion, frozen, champions = None, False, []
    for line in lines:
        kind = line["event"]
        if kind == "decision" and line["decision"] != "HELD":
            beaten = line["champion"] and line["champion"]["key"]
            found.say(CHAMPIONS, beaten != champion, f"{line['key']} was compared with {beaten}, not {champion}")
            if line["decision"] == "PROMOTED":
                found.say(CHAMPIONS, frozen, f"{line['key']} was promoted while frozen")
                better = champion is None or line["candidate"]["right"] > line["champion"]["right"]
                found.say(CHAMPIONS, not better, f"{line['key']} was promoted, and is not better")
                champion = line["key"]
                champions.append(champion)
        elif kind == "rollback":
            found.say(CHAMPIONS, line["key"] != champions[line["number"] - 1], f"rolled back to another: {line}")
            champion, frozen = line["key"], True
        elif kind in ("freeze", "unfreeze"):
            frozen = kind == "freeze"
    keys = Counter(line["key"] for line in lines if line["event"] == "decision" and line["decision"] != "HELD")
    found.say(DOUBLES, [key for key, n in keys.items() if n > 1], f"decided twice: {keys}")
    batches = Counter(line["batch"] for line in lines if line["event"] == "ingest")
    found.say(DOUBLES, [batch for batch, n in batches.items() if n > 1], f"ingested twice: {batches}")
    sequences = [line["sequence"] for line in lines if "sequence" in line]
    found.say(DOUBLES, sequences != list(range(1, len(sequences) + 1)), f"data versions {sequences}")
    return champion


def _git(found: Findings, workspace: Any, folders: list[str], lines: list[dict[str, Any]]) -> None:
    git = workspace.git
    remote = dict(reversed(line.split()) for line in git("ls-remote", "origin").splitlines())
    main = remote["refs/heads/main"]
    found.say(OTHERS, main != workspace.head, "the clone does not stand at origin's main")
    wanted = {f"refs/tags/data/{line['sequence']}" for line in lines if "sequence" in line}
    wanted |= {f"refs/tags/run/{line['key']}" for line in lines if line.get("decision") in ("PROMOTED", "REJECTED")}
    tags = {name: commit for name, commit in remote.items() if name.startswith("refs/tags/")}
    found.say(LOSSES, wanted - set(tags), f"tags that are not at origin: {sorted(wanted - set(tags))}")
    found.say(OTHERS, set(tags) - wanted, f"tags that the ledger does not know: {sorted(set(tags) - wanted)}")
    stray = [name for name, commit in tags.items() if git.run("merge-base", "--is-ancestor", commit, main).returncode]
    found.say(OTHERS, stray, f"tags beside main: {stray}")
    for folder in map(Path, folders):
        status = subprocess.run(["git", "-C", folder, "status", "--porcelain"], capture_output=True, text=True).stdout
        found.say(OTHERS, status and folder == workspace.root, f"{folder.name}: not clean: {status}")
        if folder == workspace.root:
            left = [name for name in ("unfinished", "scratch") if (folder / ".ssclass" / name).exists()]
            left += [path.name for path in (folder / ".ssclass" / "tmp").glob("*")]
            left += [path.name for path in (folder / "data").iterdir() if not path.name.endswith(".parquet")]
            found.say(OTHERS, left, f"{folder.name}: left lying about: {left}")


def _data(
    found: Findings,
    workspace: Any,
    version: Any,
    lines: list[dict[str, Any]],
    sent: dict[str, dict[str, str]],
    forgotten: list[str],
) -> None:
    """Every photo that was delivered is in the data set once, or the ledger or a receipt says why it is not."""
    from ssclass.data.batches import list_batches

    shards = version.dataset.shards
    rows = Counter(row.sha256 for shard in shards for row in shard.rows)
    found.say(DOUBLES, [name for name, n in rows.items() if n > 1], f"photos twice: {rows.most_common(3)}")
    state = version.state
    refused = {item.key for shard in shards for item in shard.receipt.refused}
    removed = {sha256 for shard in shards for sha256 in (*shard.receipt.remove, *shard.receipt.remove_again)}
    labels: dict[str, str] = {}
    for shard in shards:
        labels |= shard.receipt.relabel | shard.receipt.relabel_again
    status = {ref.id: state.status(ref.id, ref.etag) for ref in list_batches(workspace.store)}
    present = version.dataset.by_sha256
    known = {sha256 for photos in sent.values() for sha256 in photos}
    found.say(OTHERS, set(present) - known, "photos in the data set that nobody sent")
    found.say(LOSSES, set(present) & set(forgotten), "forgotten photos are in the data set")
    in_use = {batch for batch, at in status.items() if at == "ingested"}
    for batch, photos in sent.items():
        at = status.get(batch)
        found.say(LOSSES, at == "waiting", f"{batch} still waits after a retrain")
        if at != "ingested":
            continue
        (ingest,) = (line for line in lines if line["event"] == "ingest" and line["batch"] == batch)
        (shard,) = (shard for shard in shards if shard.batch_id == batch)
        came = {row.sha256 for row in shard.rows}
        found.say(LOSSES, not came and ingest["receipt"]["accepted"], f"{batch}: its shard is empty")
        marker = json.loads(workspace.store.get(f"incoming/{batch}/manifest.json") or b"{}")
        # sent again before it was taken in: the sender's newest list counts
        listed = {entry["sha256"] for entry in marker.get("photos", ())}
        held_again = any(line.get("decision") == "HELD" and line["batch"] == batch for line in lines)
        for sha256, label in photos.items():
            elsewhere = any(sha256 in sent[other] for other in in_use - {batch})
            if sha256 in came and sha256 not in removed:
                right = labels.get(sha256, label)
                found.say(LOSSES, sha256 not in present, f"{batch}: {sha256[:8]} is in the shard, not in the data set")
                if sha256 in present:
                    found.say(OTHERS, present[sha256].label != right, f"{batch}: {sha256[:8]} is not {right}")
            elif sha256 in listed and not (elsewhere or sha256 in (*removed, *forgotten) or refused or held_again):
                found.say(LOSSES, True, f"{batch}: {sha256[:8]} is gone")
    wanted = {line["batch"] for line in lines if line["event"] == "ingest"}
    wanted -= {line["batch"] for line in lines if line["event"] == "revoke"}
    there = {shard.batch_id for shard in shards}
    found.say(LOSSES, wanted - there, f"batches without their shard: {sorted(wanted - there)}")
    found.say(DOUBLES, there - wanted, f"shards that should be gone: {sorted(there - wanted)}")


def _objects(found: Findings, workspace: Any, version: Any, champion: str | None) -> None:
    """What main names, and the champion's candidate, is in the bucket, byte for byte."""
    store = workspace.store
    tracked = [*version.files("data"), *version.files("candidate")]
    if champion is not None:
        tracked += workspace.decided(champion).files("candidate")
    names = {each.md5 for each in tracked}
    for name in ("data.dvc", "dvc.lock"):
        names |= set(re.findall(r"md5: ([0-9a-f]{32}\.dir)", version.text(name)))
    for md5 in names:
        data = store.get(f"dvc/files/md5/{md5[:2]}/{md5[2:]}")
        right = data is not None and hashlib.md5(data).hexdigest() == md5[:32]
        found.say(LOSSES, not right, f"the DVC object {md5} is {'gone' if data is None else 'another'} in S3")


def _mlflow(found: Findings, workspace: Any, lines: list[dict[str, Any]], champion: str | None) -> None:
    """A finished run for each decision, a version for each champion with its bytes, the alias on the one in force."""
    from ssclass.tracking.client import DECISION_TAG, MODEL, Tracking

    tracking = Tracking.of(workspace)
    decided = {line["key"]: line for line in lines if line.get("decision") in ("PROMOTED", "REJECTED")}
    champions = [key for key, line in decided.items() if line["decision"] == "PROMOTED"]
    for key, line in decided.items():
        run = _run(tracking, key, line["run_id"])
        found.say(LOSSES, run is None, f"{key} has no run")
        if run is None:
            continue
        found.say(LOSSES, run.info.lifecycle_stage != "active", f"the run of {key} is in the trash")
        told = run.data.tags.get(DECISION_TAG)
        found.say(OTHERS, told != line["decision"], f"the run of {key} says {told}, the ledger {line['decision']}")
        found.say(OTHERS, run.info.status != "FINISHED", f"the run of {key} is {run.info.status}")
    versions = tracking.client.search_model_versions(f"name = '{tracking.name}'")
    keys = Counter(each.tags["decision_key"] for each in versions)
    found.say(DOUBLES, [key for key, n in keys.items() if n > 1], f"registered twice: {keys}")
    found.say(LOSSES, set(champions) - set(keys), f"champions without a version: {set(champions) - set(keys)}")
    found.say(CHAMPIONS, set(keys) - set(champions), f"versions of what is no champion: {set(keys) - set(champions)}")
    alias = tracking.alias()
    points_at = {str(each.version): each.tags["decision_key"] for each in versions}.get(alias or "")
    found.say(CHAMPIONS, points_at != champion, f"the alias is on {points_at}, the ledger on {champion}")
    for key in champions:
        run = _run(tracking, key, decided[key]["run_id"])
        model = tracking.models_of(run).get(MODEL) if run else None
        place = Path(model.artifact_location.removeprefix("file://")) if model else Path("/nowhere")
        file = place / "classifier.json"
        found.say(LOSSES, not file.exists(), f"the registered model of {key} has no bytes")
        if file.exists():
            with workspace.decided(key).open("candidate/classifier.json") as ours:
                found.say(CHAMPIONS, ours.read() != file.read_bytes(), f"the registered model of {key} is another")


def _run(tracking: Any, key: str, run_id: str) -> Any:
    """The run that the ledger names, in the trash or not; where MLflow was made anew, the one that tells of the key."""
    from mlflow.exceptions import MlflowException

    try:
        return tracking.client.get_run(run_id)
    except MlflowException:
        return next(iter(tracking.runs(key)), None)


def _verify(found: Findings, workspace: Any) -> None:
    """What `ssclass verify` finds."""
    try:
        from ssclass.upkeep.verify import verify
    except ImportError:
        return
    for finding in verify(workspace):
        found.say(OTHERS, True, f"verify: {finding.line()}")
