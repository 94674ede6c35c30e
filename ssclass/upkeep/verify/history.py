"""The ledger and its tags: lines are only added, nothing is decided twice, each tag is where its line was written."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cache, partial

from ssclass.upkeep.verify.finding import REPAIR, Finding
from ssclass.workspace.git import AUTHOR
from ssclass.workspace.ledger import HELD, Event
from ssclass.workspace.workspace import Workspace

_BLAME = re.compile(r"([0-9a-f]{40}) \d+ (\d+)")
_TAG = re.compile(r"refs/tags/((?:data|run)/[^^]+)(\^\{\})?")


def ledger(workspace: Workspace) -> Iterator[Finding]:
    """The ledger reads, was never rewritten, and has each decision, data version and batch once."""
    version = workspace.at()
    _ = version.state  # WorkspaceError names the line
    log = workspace.git("log", "--format=commit %h", "--numstat", "HEAD", "--", "ledger.jsonl")
    commit = ""
    for line in log.splitlines():
        if line.startswith("commit "):
            commit = line.removeprefix("commit ")
        elif line and line.split("\t")[1] not in ("0", "-"):
            yield Finding(
                "ledger.jsonl",
                f"commit {commit} changed or removed {line.split(chr(9))[1]} lines of it",
                f"see `git -C {workspace.root} show {commit} -- ledger.jsonl`, and add what is missing in a new commit",
            )
    counted: Counter[str] = Counter()
    for event in version.events:
        if event.kind == "decision" and event.body["decision"] != HELD:
            counted[f"run/{event.body['key']}"] += 1
        if event.kind == "ingest":
            counted[f"batch {event.body['batch']}"] += 1
        if "sequence" in event.body:
            counted[f"data/{event.body['sequence']}"] += 1
    for name, times in counted.items():
        if times > 1:
            yield Finding(
                name,
                f"the ledger has it {times} times",
                f"the last line counts; see `git -C {workspace.root} log -S{name.split('/')[-1]} -- ledger.jsonl`",
            )


def expected_tags(workspace: Workspace, rev: str = "HEAD") -> dict[str, str]:
    """Tag → the commit that wrote its line of the ledger.

    A person's commit that touched lines (their ends, blanks, a blank line between) did not write them.
    """
    blame = workspace.git("blame", "--porcelain", "-w", rev, "--", "ledger.jsonl")
    wrote = {int(found[2]): found[1] for line in blame.splitlines() if (found := _BLAME.match(line))}
    numbers = [
        number for number, line in enumerate(workspace.at(rev).text("ledger.jsonl").split("\n"), 1) if line.strip()
    ]
    expected = {}
    for number, event in zip(numbers, workspace.at(rev).events, strict=True):
        if name := _tag_of(event):
            expected[name] = wrote[number]
    authors = workspace.git("log", "--format=%H %ae", rev, "--", "ledger.jsonl").splitlines()
    by_hand = {line.split()[0] for line in authors if not line.endswith(f" {AUTHOR}")}
    touched = [name for name, commit in expected.items() if commit in by_hand]
    return expected | (_written(workspace, rev, touched) if touched else {})


def _tag_of(event: Event) -> str | None:
    """The tag of the commit that writes an event; None for one that has none."""
    if event.kind == "decision" and event.body["decision"] != HELD:
        return f"run/{event.body['key']}"
    return f"data/{event.body['sequence']}" if "sequence" in event.body else None


def _written(workspace: Workspace, rev: str, names: Iterable[str]) -> dict[str, str]:
    """Tag → the first commit of main whose ledger has its line: lines are only added, so that halving finds it."""
    log = workspace.git("rev-list", "--first-parent", "--reverse", rev, "--", "ledger.jsonl").splitlines()

    @cache
    def tags(commit: str) -> frozenset[str | None]:
        return frozenset(_tag_of(event) for event in workspace.at(commit).events)

    def has(name: str, commit: str) -> bool:
        return name in tags(commit)

    return {name: log[bisect_left(log, True, hi=len(log) - 1, key=partial(has, name))] for name in names}


def tags_at_origin(workspace: Workspace) -> dict[str, str]:
    """data/<n> and run/<key> → the commit, as origin has them; FailedError when it is away."""
    there = {}
    for line in workspace.git.remote("ls-remote", "--tags", "origin").splitlines():
        commit, _, ref = line.partition("\t")
        if found := _TAG.fullmatch(ref):
            there[found[1]] = commit  # of an annotated tag, the commit comes after the tag
    return there


def tags(workspace: Workspace) -> Iterator[Finding]:
    """Each data version and decision has its tag, at origin and here, and no tag is of another history."""
    git, root = workspace.git, workspace.root
    there, expected = tags_at_origin(workspace), expected_tags(workspace)
    refs = git("for-each-ref", "--format=%(refname:lstrip=2) %(objectname) %(*objectname)", "refs/tags")
    here = {line.split()[0]: line.split()[-1] for line in refs.splitlines()}
    for name, commit in expected.items():
        if there.get(name) != commit:
            said = f"origin has it at {there[name][:12]}" if name in there else "origin has no such tag"
            push = f"git -C {root} push --force origin {commit[:12]}:refs/tags/{name}"

            def mend(name: str = name, commit: str = commit) -> None:
                lease = f"--force-with-lease=refs/tags/{name}:{there.get(name, '')}"
                git.remote("push", "--quiet", lease, "origin", f"{commit}:refs/tags/{name}")
                git("tag", "--force", name, commit)

            yield Finding(name, f"{said}, the ledger's line is of {commit[:12]}", f"`{push}`, or {REPAIR}", mend)
        elif here.get(name) != commit:
            yield Finding(
                name,
                "this clone has no such tag, or has it at another commit",
                f"`git -C {root} fetch --tags --force origin`, or {REPAIR}",
                partial(git, "tag", "--force", name, commit),
            )
    yield from _of_another_history(workspace, {name: at for name, at in there.items() if name not in expected})


def _of_another_history(workspace: Workspace, unknown: dict[str, str]) -> Iterator[Finding]:
    """Tags that no line of the ledger has: left over, or of commits that somebody took from main."""
    root = workspace.root
    for name in [name for name, commit in unknown.items() if workspace.has_ancestor(commit)]:
        yield Finding(name, "no line of the ledger has it", f"`git -C {root} push origin :refs/tags/{name}`")
    lost = {name: commit for name, commit in unknown.items() if not workspace.has_ancestor(commit)}
    if lost:
        yield Finding("main", moved_back(lost), bring_back(workspace, lost))


def moved_back(lost: dict[str, str]) -> str:
    """What it says that origin has tags of decisions and data versions which main does not contain."""
    names = ", ".join(list(lost)[-5:])
    return f"was moved back: it lacks {len(lost)} data versions or decisions that origin has tags of ({names})"


def bring_back(workspace: Workspace, lost: dict[str, str], rev: str = "HEAD") -> str:
    """What to do about a main that was moved back: a command, where one commit has all that main has and all tags."""
    root = workspace.root
    for commit in set(lost.values()):
        if all(workspace.has_ancestor(each, commit) for each in (rev, *lost.values())):
            return (
                f"`git -C {root} push origin {commit[:12]}:refs/heads/main` brings them back; left as it is, the "
                "pipeline goes on from main, and replaces the tags one by one"
            )
    return "main went on from there: merge one of the tags, or leave it, and the pipeline replaces the tags one by one"


def lost_tags(workspace: Workspace, rev: str = "HEAD") -> dict[str, str]:
    """Tags of data versions and decisions at origin, and their commits, that main does not contain."""
    expected = expected_tags(workspace, rev)
    found = {name: commit for name, commit in tags_at_origin(workspace).items() if name not in expected}
    return {name: commit for name, commit in found.items() if not workspace.has_ancestor(commit, rev)}
