"""What 20 new photos cost beside 700 known ones: `python -m benchmarks.twenty DIR [BATCHES [HEAD]]`.

By default 3 batches and the head bilinear. DIR holds class folders. All but (BATCHES + 1) x 20 photos are the first
batch; then 20 photos arrive at a time, and each retrain is a process of its own, as under cron: imports count. Features
are real, so are git, DVC, S3 (moto, in a process of its own) and MLflow (a file); Prefect is left out. The first 20 are
not counted: what is made once on a machine is then made. Printed: medians of seconds of processors by step, git's
included, in all and by the clock, and which of the large libraries a retrain imported.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path
from typing import Any

HEAVY = ("tensorflow", "keras", "mlflow", "matplotlib", "scipy.stats", "sklearn", "dvc", "pandas", "pyarrow")
STEPS = ("find_batches", "ingest", "train", "log_run", "decide", "reconcile", "tell_health", "attach_exports")


def spent() -> float:
    """Seconds of processors so far, of this process and of those that it waited for."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def retrain(folder: str) -> dict[str, Any]:
    """Retrain here; seconds by step, of processors and by the clock, and the large libraries that it imported."""
    from ssclass.collector import collect_seldom
    from tests.support.fake_head import retrain_flow

    collect_seldom()  # as the command line does
    flow, by_step, clock = retrain_flow(), dict.fromkeys(STEPS, 0.0), dict.fromkeys(STEPS, 0.0)

    def counted(name: str, step: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(step)
        def call(*args: Any) -> Any:
            began, at = spent(), time.monotonic()
            try:
                return step(*args)
            finally:
                by_step[name] += spent() - began
                clock[name] += time.monotonic() - at

        return call

    for name in STEPS:
        setattr(flow.step, name, counted(name, getattr(flow.step, name)))
    decision = flow.retrain(folder).decision
    return {
        "decision": decision,
        "steps": by_step,
        "by_the_clock": clock,
        "imported": [name for name in HEAVY if name in sys.modules],
    }


def in_a_process(folder: Path, told: Path) -> dict[str, Any]:
    """The same in a process of its own; `processors` and `clock` are its seconds in all."""
    before, began = spent(), time.monotonic()
    subprocess.run([sys.executable, "-m", "benchmarks.twenty", "--retrain", str(folder), str(told)], check=True)
    found: dict[str, Any] = json.loads(told.read_text())
    return found | {"processors": spent() - before, "clock": time.monotonic() - began}


def deliver(photos: Path, batches: int, head: str) -> Iterator[dict[str, Any]]:
    """Deliver batch by batch, each answered by a retrain in a process of its own; what each cost, the first two too."""
    from benchmarks.retrain import split
    from ssclass.data.submit import submit
    from ssclass.environment import leave_user_settings
    from ssclass.workspace.create import create
    from tests.support.moto import s3_process
    from tests.support.pipelines import set_params
    from tests.support.shops import empty_mlflow

    with tempfile.TemporaryDirectory() as scratch, s3_process() as endpoint:
        os.environ |= {"SSCLASS_PATIENCE": "10", "SSCLASS_EXPORTS": ""}
        leave_user_settings()
        folder = Path(scratch)
        empty_mlflow(folder / "mlflow.db")
        values = {"bucket": "twenty", "s3_endpoint": endpoint, "s3_region": "us-east-1"}
        workspace = create(folder / "workspace", values | {"mlflow_uri": f"sqlite:///{folder / 'mlflow.db'}"})
        workspace.store.make_bucket()
        set_params(workspace, head=head)
        for number, part in enumerate(split(photos, folder / "parts", batches + 1)):
            submit(workspace.store, part, f"batch-{number}", workspace.at().params.dataset.classes)
            yield in_a_process(workspace.root, folder / "told.json")


def main(photos: Path, batches: int, head: str) -> None:
    """Deliver, retrain, and print."""
    from benchmarks.retrain import NEW

    found = []
    for number, each in enumerate(deliver(photos, batches, head)):
        print(json.dumps({"batch": number, **each}), flush=True)
        found.append(each)
    counted = found[2:]
    print(f"{NEW} new photos, {head}, medians of {batches}: seconds of processors")
    for step in STEPS:
        print(f"  {step:16}{statistics.median(each['steps'][step] for each in counted):8.2f}")
    print(f"  {'in all':16}{statistics.median(each['processors'] for each in counted):8.2f}")
    print(f"  {'by the clock':16}{statistics.median(each['clock'] for each in counted):8.2f}")
    print(f"imported: {', '.join(counted[-1]['imported'])}; load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    if sys.argv[1] == "--retrain":
        Path(sys.argv[3]).write_text(json.dumps(retrain(sys.argv[2])))
    else:
        given = sys.argv[2:]
        main(Path(sys.argv[1]), int(given[0]) if given else 3, given[1] if len(given) > 1 else "bilinear")
