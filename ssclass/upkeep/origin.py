"""Probing origin: whether it takes what the pipeline pushes, and whether its main and tags are what the ledger says."""

from __future__ import annotations

import re

from ssclass.errors import FailedError
from ssclass.settings import Settings
from ssclass.upkeep.verify.history import bring_back, expected_tags, lost_tags, moved_back, tags_at_origin
from ssclass.workspace.git import failure
from ssclass.workspace.workspace import Workspace

IMPOSSIBLE = "heads/main/ssclass-doctor"
"""A branch below the branch main, which git cannot keep."""
_PUSHED = re.compile(r"! \[.*\] +\S+ -> (\S+) \((.*)\)")
_ALL_OR_NOTHING = ("atomic transaction failed", "atomic push failure", "atomic push failed")


def probe_push(settings: Settings) -> str:
    """Fetch main, and push to it and to a tag as a decision does, together with a branch that cannot be.

    A push of several refs is all or nothing: origin's hooks and rules are asked about main, and nothing is changed.
    """
    git = Workspace(settings).git
    url = git("remote", "get-url", "origin")
    git("fetch", "--quiet", "origin", "+refs/heads/main:refs/remotes/origin/main")
    commit = git("commit-tree", "origin/main^{tree}", "-p", "origin/main", "-m", "ssclass doctor")
    refs = [f"{commit}:refs/{ref}" for ref in ("heads/main", "tags/run/ssclass-doctor", IMPOSSIBLE)]
    done = git.run("push", "--atomic", "origin", *refs)
    reasons = _PUSHED.findall(done.stderr)
    if {name for name, _ in reasons} < {"main", "run/ssclass-doctor"} or any(
        reason not in _ALL_OR_NOTHING for _, reason in reasons
    ):
        raise failure(f"a push to main, and of a tag run/…, at {url}", done)
    return f"{url}: fetch, push to main and of tags"


def probe_history(settings: Settings) -> str:
    """Whether origin's main and tags are what the ledger says: a main that was moved back, tags that were lost."""
    workspace, main = Workspace(settings), "origin/main"
    refs = [f"+refs/tags/{name}/*:refs/tags/{name}/*" for name in ("data", "run")]
    workspace.git("fetch", "--quiet", "origin", f"+refs/heads/main:refs/remotes/{main}", *refs)
    expected, there = expected_tags(workspace, main), tags_at_origin(workspace)
    if lost := lost_tags(workspace, main):
        raise FailedError(f"main {moved_back(lost)}; {bring_back(workspace, lost, main)}")
    champion = workspace.at(main).state.champion
    missing = [name for name, commit in expected.items() if there.get(name) != commit]
    if missing:
        said = " (the champion's among them)" if f"run/{champion}" in missing else ""
        raise FailedError(
            f"{len(missing)} tags of the ledger are not at origin, or elsewhere: {', '.join(missing[-3:])}{said}"
        )
    return f"{len(expected)} tags where the ledger's lines are"
