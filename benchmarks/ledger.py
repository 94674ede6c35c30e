"""Whether a retrain costs more the longer the ledger: `python -m benchmarks.ledger [BATCHES …]`, default 10 100 1000.

For each number of batches behind, a workspace is made whose data set has a shard, and whose ledger has an ingest and a
decision, for each, with their tags. All workspaces hold the same number of photos, one for each batch of the longest
ledger, so that what differs is the ledger. Then batches of four photos arrive, and are retrained on one by one. A fake
head stands in for TensorFlow (tests/support/fake_head.py), as training is not the question; git, DVC, S3 (moto, in a
process of its own) and MLflow are real, Prefect's server is left out. Printed: medians of five retrains, by the clock
and on processors (git's processes included), and of a retrain with nothing new.
"""

from __future__ import annotations

import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ssclass.data.batches import find_batches, read_batch
from ssclass.data.build import build_shard
from ssclass.environment import leave_user_settings, quiet_libraries
from ssclass.retrain.ingest import summary
from ssclass.workspace.ledger import Event
from ssclass.workspace.transaction import Change
from tests.support.fake_head import patch_model, retrain_flow
from tests.support.moto import s3_process
from tests.support.shops import Shop, empty_mlflow, pictures

ROUNDS, PHOTOS = 5, 4


def spent() -> float:
    """Seconds of processors so far, of this process and of those that it waited for."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def timed(shop: Shop) -> tuple[float, float]:
    """Seconds by the clock and of processors of a retrain."""
    clock, processors = time.monotonic(), spent()
    shop.retrain()
    return time.monotonic() - clock, spent() - processors


def lay_behind(shop: Shop, batches: int, photos: int, folder: Path) -> None:
    """Put so many batches, each of so many photos, into data set and ledger in one commit, as if decided on."""
    names = [f"behind-{number:04}" for number in range(batches)]
    for name in names:
        shop.send(name, photos)
    workspace = shop.workspace

    def write(change: Change) -> None:
        version = change.version
        like = next(iter(version.state.decisions.values())).body
        events, shards, tags = [], [], []
        for number, ref in enumerate(find_batches(workspace.store, names), version.state.next_version):
            batch, out = read_batch(workspace.store, ref, version.params.dataset.classes), folder / f"{ref.id}.parquet"
            with tempfile.TemporaryDirectory(dir=folder) as spool:
                receipt = build_shard(
                    workspace.store, batch, version.params, version.dataset, Path(spool), out, None, number
                )
            shards.append(out)
            key = f"{number:016x}"
            told: dict[str, Any] = {"batch": ref.id, "etag": ref.etag, "sequence": number}
            events.append(Event.now("ingest", **told, receipt=summary(receipt), champion_test=None))
            asked = {**like, "key": key, "decision": "REJECTED", "batches": [ref.id], "champion": like["candidate"]}
            asked["champion"] = {**like["candidate"], "key": like["key"]}
            events.append(Event.now("decision", **{**asked, "data_version": f"data/{number}"}))
            tags += [f"data/{number}", f"run/{key}"]
        md5s = change.add_shards(*shards)
        for event in events[::2]:
            event.body["md5"] = md5s[f"{event.body['batch']}.parquet"]
        change.publish(f"{batches} batches", events, tags=tags)

    workspace.write(write)
    # A thousand pushes would have made git tidy origin up on the way (git gc --auto); one push of all does not.
    subprocess.run(["git", "-C", str(shop.workspace.origin), "pack-refs", "--all"], check=True)


def main(numbers: Sequence[int]) -> None:
    """Print a line for each number of batches behind."""
    with tempfile.TemporaryDirectory() as scratch, s3_process() as endpoint:
        os.environ |= {"SSCLASS_PATIENCE": "10", "SSCLASS_EXPORTS": ""}
        leave_user_settings()
        patch_model(setattr)
        folder, flow, shops = Path(scratch), retrain_flow(), itertools.count()
        empty_mlflow(folder / "empty.db")
        drawn = pictures(folder / "pictures", max(numbers) + 200)
        for batches in numbers:
            shop = Shop.make(folder / f"shop-{next(shops)}", endpoint, drawn, flow, folder / "empty.db")
            quiet_libraries(shop.workspace.settings)
            shop.first()
            shop.retrain()
            (shards := folder / f"shards-{batches}").mkdir()
            lay_behind(shop, batches, max(numbers) // batches, shards)
            timed(shop)  # features of what lies behind
            new = []
            for number in range(ROUNDS):
                shop.send(f"new-{number}", PHOTOS)
                new.append(timed(shop))
            none = [timed(shop) for _ in range(ROUNDS)]
            told = {
                name: [round(statistics.median(each), 2) for each in zip(*found, strict=True)]
                for name, found in (("new", new), ("nothing new", none))
            }
            print(
                json.dumps({"batches": batches, "photos": max(numbers), "seconds by the clock, of processors": told}),
                flush=True,
            )


if __name__ == "__main__":
    main([int(each) for each in sys.argv[1:]] or [10, 100, 1000])
