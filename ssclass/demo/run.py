"""The demo: five deliveries to a real pipeline on embedded parts, and what became of each."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from ssclass import progress
from ssclass.data.folders import class_folders, files_in
from ssclass.data.submit import submit
from ssclass.demo.drawings import draw, junk
from ssclass.environment import leave_user_settings, quiet_libraries
from ssclass.errors import BatchError
from ssclass.settings import CHECKOUT, Settings
from ssclass.stack.storage import storage
from ssclass.text import composed
from ssclass.workspace.create import create
from ssclass.workspace.workspace import Workspace

SHARES = (0.45, 0.25, 0.30)  # of the photos: first batch, second batch, third batch
FLIPPED = 0.8  # of the labels of the spoilt third batch
DRAWN = 60  # drawings a class, when there are no photos
MIN_PHOTOS = 40  # in all; fewer leave no held-out set to speak of


@dataclass(frozen=True)
class Step:
    """One delivery and the retrain after it."""

    what: str
    decision: str
    reason: str
    accepted: int
    duplicates: int
    refused: int
    candidate: str
    champion: str
    data_version: str
    seconds: float


def next_folder() -> Path:
    """A workspace folder that no demo has used: ``demo/001`` and so on, in the checkout or in this folder."""
    root = (CHECKOUT if (CHECKOUT / "pyproject.toml").exists() else Path.cwd()) / "demo"
    number = 1
    while (root / f"{number:03}").exists() or (root / f"{number:03}.git").exists():
        number += 1
    return root / f"{number:03}"


def gather(photos: Path) -> dict[str, list[Path]]:
    """Files by class folder; BatchError when there is not enough to show anything."""
    found = {composed(folder.name): files for folder in class_folders(photos) if (files := files_in(folder))}
    if len(found) < 2:
        raise BatchError(
            f"{photos}: {len(found)} class folder(s) with photos; it needs two or more, as in sushi/ and sandwich/"
        )
    if sum(map(len, found.values())) < MIN_PHOTOS or min(map(len, found.values())) < 10:
        raise BatchError(
            f"{photos}: too few photos ({', '.join(f'{len(files)} {name}' for name, files in found.items())}); the "
            f"demo needs {MIN_PHOTOS} in all and 10 a class"
        )
    return found


def deliveries(found: dict[str, list[Path]], folder: Path, seed: int) -> Iterator[tuple[str, str, Path]]:
    """(what it shows, batch id, folder of class folders) of the five deliveries; links to the photos, not copies."""
    chance = random.Random(seed)
    parts: list[dict[str, list[Path]]] = [{}, {}, {}]
    for name, files in found.items():
        mixed = chance.sample(files, len(files))
        first, second = (round(len(mixed) * share) for share in (SHARES[0], SHARES[0] + SHARES[1]))
        for part, chosen in zip(parts, (mixed[:first], mixed[first:second], mixed[second:]), strict=True):
            part[name] = chosen
    classes = list(found)
    spoilt: dict[str, list[Path]] = {name: [] for name in classes}
    for name, files in parts[2].items():
        for path in files:
            other = classes[(classes.index(name) + 1) % len(classes)]
            spoilt[other if chance.random() < FLIPPED else name].append(path)
    yield "first batch", "day-1", _link(parts[0], folder / "day-1")
    second_folder = _link(parts[1], folder / "day-2")
    yield "more photos", "day-2", second_folder
    yield "day-2 delivered again", "day-2", second_folder
    yield f"{FLIPPED:.0%} of the labels flipped", "day-3-flipped", _link(spoilt, folder / "day-3-flipped")
    good = _link(parts[2], folder / "day-3")
    junk(good / classes[0], seed)
    yield "a good batch with junk in it", "day-3", good


def _link(part: dict[str, list[Path]], folder: Path) -> Path:
    for name, files in part.items():
        (folder / name).mkdir(parents=True)
        for number, path in enumerate(files):
            (folder / name / f"{number:04}-{path.name}").symlink_to(path.resolve())
    return folder


def run(photos: Path | None, folder: Path | None, seed: int, say: Any) -> dict[str, Any]:
    """Run the demo; returns what ``--json`` prints. `say` gets lines for a person as it goes."""
    import time

    root = (folder or next_folder()).resolve()
    leave_user_settings()
    quiet_libraries(Settings(workspace=root))
    found = gather(photos) if photos else None
    made = create(root, {"bucket": "ssclass", "exports": ""})  # converting takes longer than its retrains
    with storage(made.settings) as settings, progress.shown():
        workspace = Workspace(settings)
        staging = workspace.private / "demo"
        staging.mkdir(parents=True)
        if found is None:
            say(
                f"No --photos given: these are DRAWINGS made by code (seed {seed}), {DRAWN} a class. Scores say "
                "nothing about real photos."
            )
            draw(staging / "drawings", ["sandwich", "sushi"], DRAWN, seed)
            found = gather(staging / "drawings")
        say(f"workspace {root}: {', '.join(f'{len(files)} {name}' for name, files in found.items())}")
        _set_classes(workspace, list(found))
        say("starting Prefect …")
        from flows.retrain import retrain

        steps = []
        for number, (what, batch, source) in enumerate(deliveries(found, staging, seed), 1):
            say(f"{number}. {what}: batch {batch}")
            began = time.monotonic()
            submit(
                workspace.store,
                source,
                batch,
                list(found),
                partial(progress.report, f"upload of {batch}"),
            )
            outcome = retrain(str(root))
            event = outcome.event
            taken = next((each for each in outcome.batches if each.batch == batch), None)
            steps.append(
                Step(
                    what=what,
                    decision=outcome.decision,
                    reason=outcome.reason,
                    accepted=taken.accepted if taken else 0,
                    duplicates=taken.duplicates if taken else 0,
                    refused=taken.refused if taken else 0,
                    candidate=f"{event['candidate']['right']}/{event['holdout']['size']}" if event else "",
                    champion=f"{event['champion']['right']}/{event['holdout']['size']}"
                    if event and event["champion"]
                    else "",
                    data_version=workspace.at().data_version,
                    seconds=round(time.monotonic() - began, 1),
                )
            )
            say(f"   {outcome.decision}: {outcome.reason}")
        shutil.rmtree(staging)
    return {
        "workspace": str(root),
        "drawings": photos is None,
        "steps": [asdict(step) for step in steps],
        "champion": _champion(workspace),
    }


def _set_classes(workspace: Workspace, classes: Sequence[str]) -> None:
    """Put the classes into params.yaml, as a person would, and push it."""
    path = workspace.root / "params.yaml"
    text = path.read_text()
    if tuple(yaml.safe_load(text)["dataset"]["classes"]) == tuple(classes):
        return
    lines = [
        f"  classes: {json.dumps(list(classes))}" if line.startswith("  classes:") else line
        for line in text.splitlines()
    ]
    path.write_text("\n".join(lines) + "\n")
    workspace.git("commit", "--quiet", "--all", "--message", f"Classes: {', '.join(classes)}")
    workspace.git("push", "--quiet", "origin", "main")


def _champion(workspace: Workspace) -> dict[str, Any] | None:
    from ssclass.retrain.predict import result_folder
    from ssclass.retrain.result import Result
    from ssclass.retrain.statistics import clopper_pearson
    from ssclass.tracking.report import interval_of_folds

    state = workspace.at().state
    if state.champion is None:
        return None
    result = Result.read(result_folder(workspace, state.champion) / "result.json")
    mean, folds = interval_of_folds(result.cross_validation[result.head])
    body = state.decisions[state.champion].body
    span = clopper_pearson(body["candidate"]["right"], body["holdout"]["size"])
    return {
        "number": state.number_of(state.champion),
        "head": result.head,
        "right": body["candidate"]["right"],
        "of": body["holdout"]["size"],
        "accuracy_interval": [span.low, span.high],
        "cv_accuracy": mean,
        "cv_accuracy_interval": [folds.low, folds.high],
    }
