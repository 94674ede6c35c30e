"""MLflow against the ledger: the experiment, a finished run a decision, one whole version a champion, the alias."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from typing import Any

from ssclass.environment import temporary_folder
from ssclass.errors import StoreError
from ssclass.retrain import results
from ssclass.retrain.challenger import challenger_key
from ssclass.serving.attached import attach_anew, fetch
from ssclass.tracking import publish
from ssclass.tracking.client import ALIAS, CANDIDATE, CHALLENGER, DECISION_TAG, KEY_TAG, MODEL, Tracking
from ssclass.tracking.exports import ATTACHED, TAG, lacking, pending, wanted
from ssclass.upkeep.artifacts import damage, restore
from ssclass.upkeep.rebuild import rebuild
from ssclass.upkeep.verify.finding import REPAIR, Finding
from ssclass.workspace.dvc import CANDIDATE as FOLDER
from ssclass.workspace.ledger import Event
from ssclass.workspace.workspace import Workspace

ANEW = "`ssclass rebuild` makes it anew from the ledger, as `ssclass verify --repair` does"


def experiment(workspace: Workspace) -> Iterator[Finding]:
    """The experiment is there, once something was decided, and nobody deleted it."""
    tracking = Tracking.of(workspace)
    if not workspace.at().state.decisions:
        return
    thing = f"MLflow experiment {tracking.name}"
    with tracking.named():
        found = tracking.client.get_experiment_by_name(tracking.name)
    if found is None:
        yield Finding(thing, "not there, though the ledger has decisions", ANEW, lambda: rebuild(workspace))
    elif found.lifecycle_stage == "deleted":
        yield Finding(thing, "deleted", REPAIR, tracking.restore_experiment)


def _usable(workspace: Workspace) -> Tracking | None:
    """MLflow, where there is something to check: None without a decision, or without an experiment in force."""
    if not workspace.at().state.decisions:
        return None
    tracking = Tracking.of(workspace)
    with tracking.named():
        found = tracking.client.get_experiment_by_name(tracking.name)
    return tracking if found is not None and found.lifecycle_stage != "deleted" else None


def runs(workspace: Workspace) -> Iterator[Finding]:
    """Each decision has one run, which is not in the trash, is finished, and says what the ledger says."""
    tracking = _usable(workspace)
    if tracking is None:
        return
    by_id, by_key = {}, defaultdict(list)
    for run in tracking.all_runs():
        by_id[run.info.run_id] = run
        if DECISION_TAG in run.data.tags and run.info.lifecycle_stage != "deleted":
            by_key[run.data.tags.get(KEY_TAG)].append(run)
    for key, event in workspace.at().state.decisions.items():
        run = by_id.get(event.body["run_id"]) or next(iter(by_key[key]), None)
        if run is None:
            yield Finding(f"run/{key}", "MLflow has no run of this decision", ANEW, lambda: rebuild(workspace))
            continue
        yield from _run(workspace, tracking, event, run)
        for double in by_key[key]:
            if double.info.run_id != run.info.run_id:
                yield Finding(
                    f"run/{key}",
                    f"MLflow has a second run with its decision, {double.info.run_id}",
                    f"delete that run; {REPAIR}",
                    partial(publish.discard, workspace, double.info.run_id),
                )


def _run(workspace: Workspace, tracking: Tracking, event: Event, run: Any) -> Iterator[Finding]:
    thing, run_id = f"run/{event.body['key']}", str(run.info.run_id)

    def restore_run() -> None:
        with tracking.named():
            tracking.client.restore_run(run_id)

    def conclude() -> None:
        result = results.kept(workspace, event.body["key"])
        publish.conclude(workspace, tracking, workspace.at().state, event, result, run_id)

    if run.info.lifecycle_stage == "deleted":
        yield Finding(thing, f"its MLflow run {run_id} is in the trash", REPAIR, restore_run)
    said = run.data.tags.get(DECISION_TAG)
    if said != event.body["decision"] or run.info.status != "FINISHED":
        told = f"its MLflow run {run_id} says {said or 'no decision'}, {run.info.status}"
        yield Finding(thing, f"{told}; the ledger {event.body['decision']}", REPAIR, conclude)


def registry(workspace: Workspace) -> Iterator[Finding]:
    """Each champion has one registered version, and there are no others."""
    tracking = _usable(workspace)
    if tracking is None:
        return
    state = workspace.at().state
    with tracking.named():
        found = list(tracking.client.search_model_versions(f"name = '{tracking.name}'"))
    by_key: dict[str | None, list[Any]] = defaultdict(list)
    for version in sorted(found, key=lambda each: int(each.version)):
        by_key[version.tags.get(KEY_TAG)].append(version)

    def drop(number: str) -> None:
        with tracking.named():
            tracking.client.delete_model_version(tracking.name, number)

    for key in state.champions:
        for extra in by_key[key][1:]:
            yield Finding(
                f"version {extra.version}",
                f"the champion {key} is registered twice, as version {by_key[key][0].version} before",
                f"delete it; {REPAIR}",
                partial(drop, str(extra.version)),
            )
        if not by_key[key]:
            yield Finding(f"run/{key}", "the champion has no registered version", ANEW, lambda: rebuild(workspace))
    for name, versions in by_key.items():
        if name not in state.champions:
            for version in versions:
                yield Finding(
                    f"version {version.version}",
                    f"registered for {name or 'nothing that it names'}, which is no champion of the ledger",
                    "somebody else registered it: delete it in MLflow, or leave it, the pipeline does not use it",
                )


def models(workspace: Workspace) -> Iterator[Finding]:
    """The models of each champion can be fetched, and are whole, byte for byte where DVC has the bytes."""
    tracking = _usable(workspace)
    if tracking is None:
        return
    state = workspace.at().state
    for key in state.champions:
        event = state.decisions[key]
        version = tracking.version_of(key)
        if version is None:  # told already
            continue
        run = tracking.find_run(event)
        if run is None:  # told already
            continue
        with tracking.named():
            logged = tracking.models_of(run)
        try:
            files = workspace.decided(key).files(FOLDER)
        except StoreError:  # `gc` may have taken a former champion's candidate
            files = ()
        if MODEL not in logged:
            yield Finding(
                f"version {version.version}",
                "its logged model is gone",
                ANEW,
                partial(_register_anew, workspace, tracking, str(version.version)),
            )
        for name in (MODEL, CANDIDATE):
            model = logged.get(name)
            wrong = model and damage(tracking, model, key, files)
            if wrong:
                yield Finding(
                    f"version {version.version}, model {name}",
                    wrong,
                    ANEW,
                    partial(restore, workspace, tracking, model, event),
                )


def _register_anew(workspace: Workspace, tracking: Tracking, number: str) -> None:
    """A version whose model is gone goes, and the champion gets a new one, with the next number."""
    with tracking.named():
        tracking.client.delete_model_version(tracking.name, number)
    publish.set_alias(workspace, tracking, workspace.at().state)


def exports(workspace: Workspace) -> Iterator[Finding]:
    """What the settings ask for of the champion in force is attached to its version, and is whole; or the reason is."""
    tracking, state = _usable(workspace), workspace.at().state
    version = tracking.version_of(state.champion) if tracking is not None and state.champion is not None else None
    if tracking is None or version is None:
        return
    number, missing = str(version.version), pending(workspace.settings, version.tags)
    for name in missing:
        if lacking(name) is None:
            wrong = f"export {name} is not there yet"
            remedy = f"{REPAIR}, and the next retrain does"
            yield Finding(f"version {number}", wrong, remedy, partial(attach_anew, workspace, tracking, number, name))
    for name in wanted(workspace.settings):
        if name not in missing and version.tags.get(f"{TAG}{name}", "").startswith(ATTACHED):
            with temporary_folder(workspace.settings) as scratch:
                if fetch(tracking, version, name, scratch / name) is None:
                    yield Finding(
                        f"version {number}",
                        f"export {name} is gone, or its files are others than those that were attached",
                        REPAIR,
                        partial(attach_anew, workspace, tracking, number, name),
                    )


def alias(workspace: Workspace) -> Iterator[Finding]:
    """The alias is on the version of the ledger's champion."""
    tracking = _usable(workspace)
    state = workspace.at().state
    if tracking is None or state.champion is None:
        return
    wanted, found = tracking.version_of(state.champion), tracking.alias()
    if wanted is not None and found != str(wanted.version):
        yield Finding(
            f"alias {ALIAS}",
            f"on {f'version {found}' if found else 'no version'}, the ledger's champion is version {wanted.version}",
            f"{REPAIR}, and the next retrain does",
            lambda: publish.set_alias(workspace, tracking, workspace.at().state),
        )


def challenger_alias(workspace: Workspace) -> Iterator[Finding]:
    """The alias `challenger` is on the candidate that the ledger makes the challenger, or on none."""
    tracking = _usable(workspace)
    if tracking is None:
        return
    wanted, found = challenger_key(workspace.at().state), tracking.challenger()
    if found != wanted:
        said = f"on {found or 'no candidate'}, the ledger's challenger is {wanted or 'none'}"
        yield Finding(
            f"alias {CHALLENGER}",
            said,
            f"{REPAIR}, and the next retrain does",
            lambda: publish.set_challenger(workspace, tracking, workspace.at().state),
        )
