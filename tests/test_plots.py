"""decisions.csv, which `dvc plots` draws: a line longer with each decision; a workspace that lacks it gets it."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from ssclass.workspace.git import GitRefusedError
from ssclass.workspace.plots import FILE, HEADER
from tests.support.shops import Shop, open_shop


@pytest.fixture(scope="module")
def shop(s3_endpoint: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """A shop with two champions and a candidate that was rejected."""
    with open_shop(tmp_path_factory.mktemp("plots"), s3_endpoint, 50) as shop:
        shop.two_champions_and_a_rejected()
        yield shop


def drawn(folder: Path, *arguments: str) -> list[dict[str, Any]]:
    """The points that DVC's own command draws, of candidate and of champion."""
    done = subprocess.run(
        [sys.executable, "-m", "dvc", "plots", *arguments, "--json"],
        cwd=folder,
        env={**os.environ, "DVC_NO_ANALYTICS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert "errors" not in told, told
    ((plot,),) = told["data"].values()
    points: list[dict[str, Any]] = plot["content"]["data"]["values"]
    return points


def kept(shop: Shop, rev: str = "origin/main") -> list[dict[str, str]]:
    return list(csv.DictReader(shop.workspace.git("show", f"{rev}:{FILE}").splitlines()))


def lines_are_the_ledgers(shop: Shop) -> None:
    decided = list(shop.state.decisions.values())
    lines = kept(shop)
    assert [line["number"] for line in lines] == [str(number) for number in range(1, len(decided) + 1)]
    for line, event in zip(lines, decided, strict=True):
        body = event.body
        size, champion = body["holdout"]["size"], body["champion"]
        assert (line["key"], line["decision"], line["photos"]) == (body["key"], body["decision"], str(size))
        assert float(line["candidate"]) == pytest.approx(body["candidate"]["right"] / size, abs=1e-4)
        assert line["champion"] == (f"{champion['right'] / size:.4f}" if champion else "")


def by_hand(shop: Shop, text: str | None) -> None:
    """A person's commit, pushed, that replaces the file or takes it away."""
    git = shop.workspace.git
    git.remote("pull", "--quiet", "origin", "main")
    if text is None:
        git("rm", "--quiet", FILE)
    else:
        (shop.workspace.root / FILE).write_text(text)
        git("add", FILE)
    git("-c", "user.email=a@example.org", "commit", "--quiet", "--message", "By hand", "--author", "A <a@example.org>")
    git.remote("push", "--quiet", "origin", "HEAD:main")


def test_dvc_plots_show_has_candidate_and_champion_of_each_decision(shop: Shop):
    points = drawn(shop.workspace.root, "show")
    lines_are_the_ledgers(shop)
    for name in ("candidate", "champion"):
        found = [(point["number"], point["dvc_inferred_y_value"]) for point in points if point["field"] == name]
        assert found == [(line["number"], line[name]) for line in kept(shop)]


def test_dvc_plots_diff_has_both_revisions(shop: Shop):
    first, _, last = shop.state.decisions
    points = drawn(shop.workspace.root, "diff", f"run/{first}", f"run/{last}")
    number = {rev: {point["number"] for point in points if point["rev"] == f"run/{rev}"} for rev in (first, last)}
    assert number == {first: {"1"}, last: {"1", "2", "3"}}


def test_a_decision_adds_its_line_and_leaves_the_others(shop: Shop):
    texts = [shop.workspace.git("show", f"run/{key}:{FILE}") for key in shop.state.decisions]
    assert [len(text.splitlines()) for text in texts] == [2, 3, 4]
    assert all(after.startswith(before) for before, after in pairwise(texts))


def test_a_workspace_without_the_file_gets_it_whole_with_its_next_decision_and_not_before(shop: Shop):
    """An older version made it; a decision that could not be pushed leaves no file behind."""
    by_hand(shop, None)
    shop.send("fourth", 1)
    hook = Path(shop.workspace.origin) / "hooks" / "pre-receive"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text('#!/bin/sh\nwhile read old new ref; do case "$ref" in refs/tags/run/*) exit 1;; esac; done\n')
    hook.chmod(0o755)
    with pytest.raises(GitRefusedError):
        shop.retrain()
    assert not (shop.workspace.root / FILE).exists()
    hook.unlink()
    assert shop.retrain().decision == "REJECTED"
    assert len(kept(shop)) == 4
    lines_are_the_ledgers(shop)


@pytest.mark.parametrize("lines", [1, 2, 2.5])
def test_a_file_that_lacks_decisions_is_made_anew(shop: Shop, lines: float):
    """A clone with an older version decided meanwhile, or a hand cut it off."""
    text = shop.workspace.newest().text(FILE)
    whole = text.splitlines(keepends=True)[: int(lines)]
    by_hand(shop, "".join(whole) + ("2,0.8" if lines % 1 else ""))
    shop.send(f"more-{lines}", 1)
    shop.retrain()
    lines_are_the_ledgers(shop)


def test_a_persons_file_of_that_name_is_left_alone(shop: Shop):
    """Last: it changes the shop."""
    theirs = HEADER.replace("number", "nummer") + "1,2\n"
    by_hand(shop, theirs)
    shop.send("fifth", 1)
    before = len(shop.state.decisions)
    shop.retrain()
    assert len(shop.state.decisions) == before + 1
    assert shop.workspace.newest().text(FILE) == theirs
