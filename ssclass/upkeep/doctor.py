"""Probing each part for real: what it needs to do is done once, in a place where it harms nothing, and undone."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ssclass.environment import prefect_login
from ssclass.errors import FailedError, ParamsError, SsclassError
from ssclass.settings import Settings
from ssclass.store import Store
from ssclass.text import metric_word
from ssclass.tracking.client import Tracking
from ssclass.upkeep.origin import probe_history, probe_push
from ssclass.workspace.dvc import configure, repository
from ssclass.workspace.workspace import Workspace

OK, NOTE, FAILED = "ok", "note", "failed"

Probe = Callable[[Settings], str]
"""Does the thing; returns what to say, raises when it cannot be done. A `Note` says what is missing but not needed."""


class Note(Exception):
    """Something is not there, and everything works without it."""


@dataclass(frozen=True)
class Finding:
    """One part: ok, note or failed; `remedy` says what to do about a failure."""

    part: str
    state: str
    detail: str
    remedy: str = ""

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)


def examine(settings: Settings, parts: Collection[str] = ()) -> Iterator[Finding]:
    """Probe the parts, or all, one after the other; a failure of one does not keep the others from being probed."""
    impatient = settings.model_copy(update={"patience": 0.0})
    for part, probe, remedy in PROBES:
        if parts and part not in parts:
            continue
        try:
            yield Finding(part, OK, probe(impatient))
        except Note as said:
            yield Finding(part, NOTE, str(said))
        except Exception as error:  # whatever a part raises is what there is to say of it
            lines = str(error).strip().splitlines() or [type(error).__name__]
            told = lines[0] if isinstance(error, SsclassError) else f"{type(error).__name__}: {lines[0]}"
            yield Finding(part, FAILED, told, remedy)


def _s3(settings: Settings) -> str:
    """Write, read, list and delete, in a folder that the pipeline's policy covers."""
    store, key, body = Store(settings), f"features/doctor/{uuid.uuid4().hex}", b"ssclass doctor"
    store.put(key, body)
    try:
        if store.get(key) != body:
            raise FailedError(f"s3://{store.place}/{key} does not read as it was written")
        if key not in [found.key for found in store.list("features/doctor/")]:
            raise FailedError(f"s3://{store.place}/{key} was written, but is not listed")
        list(store.folders("incoming/"))
    finally:
        store.delete(key)
    return f"s3://{store.place} at {settings.s3_endpoint or 'AWS'}: write, read, list, delete"


def _conditional(settings: Settings) -> str:
    from botocore.exceptions import ClientError

    store, key = Store(settings), f"features/doctor/{uuid.uuid4().hex}"
    store.put(key, b"1")
    try:
        store.client.put_object(Bucket=store.bucket, Key=store.full(key), Body=b"2", IfNoneMatch="*")
    except ClientError as error:
        code = error.response["Error"]["Code"]
        if code in ("PreconditionFailed", "412"):
            return "a second write with If-None-Match is refused"
        raise Note(f"answered {code}; nothing depends on conditional writes") from None
    finally:
        store.delete(key)
    raise Note("ignored by this server; nothing depends on it")


def _notification(settings: Settings) -> str:
    store = Store(settings)
    found = store.client.get_bucket_notification_configuration(Bucket=store.bucket)
    kinds = [name for name in found if name.endswith(("Configurations", "Configuration"))]
    if not kinds:
        raise Note("the bucket notifies nobody; batches are found by the sweep and by `ssclass retrain`")
    return ", ".join(kinds)


def _dvc(settings: Settings) -> str:
    """Push an object of its own through DVC's remote, pull it back, delete it."""
    import hashlib

    from dvc.fs import localfs

    configure(settings)
    body = f"ssclass doctor {uuid.uuid4().hex}".encode()
    oid = hashlib.md5(body, usedforsecurity=False).hexdigest()
    with repository(settings) as repo, tempfile.TemporaryDirectory() as folder:
        remote = repo.cloud.get_remote_odb("store", hash_name="md5")
        path = Path(folder) / "object"
        path.write_bytes(body)
        remote.add(str(path), localfs, oid)
        try:
            remote.fs.get_file(remote.oid_to_path(oid), str(path.with_name("back")))
            if path.with_name("back").read_bytes() != body:
                raise FailedError(f"{remote.path}: an object does not come back as it was pushed")
        finally:
            store = Store(settings)  # DVC deletes in bulk, which some servers refuse; no retrain does
            store.delete(remote.oid_to_path(oid).removeprefix("s3://").removeprefix(f"{store.bucket}/"))
        return f"{remote.path}: push, pull, delete"


def _params(settings: Settings) -> str:
    """params.yaml can be used, and how the classes are spelt in MLflow's metrics."""
    classes = Workspace(settings).at().params.dataset.classes
    spelt = [f"{name} is {metric_word(name)} in metrics" for name in classes if metric_word(name) != name]
    return "; ".join([f"{len(classes)} classes", *spelt])


def _classes(settings: Settings) -> tuple[str, ...]:
    try:
        return tuple(Workspace(settings).at().params.dataset.classes)
    except ParamsError:  # told of params.yaml
        return ()


def _mlflow(settings: Settings) -> str:
    """A run with an artifact and a metric a class in the real experiment, or beside it while there is none yet."""
    tracking = Tracking(settings)
    with tracking.named():
        client = tracking.client
        found = client.get_experiment_by_name(tracking.name)
        if found is not None and found.lifecycle_stage == "deleted":
            raise FailedError(f"the experiment {tracking.name} was deleted; `ssclass verify --repair` restores it")
        if found is None:
            tracking = Tracking(settings.model_copy(update={"model_name": f"{settings.model_name}-doctor"}))
        run = client.create_run(tracking.experiment_id, run_name="doctor")
        try:
            for name in _classes(settings):
                client.log_metric(run.info.run_id, f"recall_{metric_word(name)}", 1.0)
            client.log_text(run.info.run_id, "ssclass doctor", "probe.txt")
            with tempfile.TemporaryDirectory() as folder:
                path = Path(client.download_artifacts(run.info.run_id, "probe.txt", folder))
                if path.read_text() != "ssclass doctor":
                    raise FailedError(f"{settings.tracking_uri}: an artifact does not come back as it was logged")
        finally:
            client.set_terminated(run.info.run_id)
            client.delete_run(run.info.run_id)
    return f"{settings.tracking_uri}: run, metrics of every class and artifact in experiment {tracking.name}"


def _registry(settings: Settings) -> str:
    """Register and delete a model of another name; the alias of the real one reads, and is the ledger's champion."""
    tracking = Tracking(settings)
    name = f"{settings.model_name}-doctor-{uuid.uuid4().hex[:8]}"
    with tracking.named():
        tracking.client.create_registered_model(name)
        tracking.client.delete_registered_model(name)
    alias, champion = tracking.alias(), Workspace(settings).at().state.champion
    wanted = None if champion is None else tracking.version_of(champion)
    if champion is not None and (wanted is None or alias != str(wanted.version)):
        raise FailedError(
            f"the alias of {tracking.name} is on {f'version {alias}' if alias else 'no version'}, which is not the "
            "ledger's champion; `ssclass verify --repair` sets it, and so does the next retrain"
        )
    return f"register, delete; {tracking.name}: {f'alias on version {alias}' if alias else 'no version yet'}"


def _prefect(settings: Settings) -> str:
    import requests

    if settings.prefect_url is None:
        raise Note("none set: each retrain starts a temporary server")
    at = settings.prefect_url.rstrip("/")
    requests.get(f"{at}/health", timeout=5).raise_for_status()
    version = requests.get(f"{at}/admin/version", headers=prefect_login(), timeout=5)
    version.raise_for_status()
    return f"{at}: Prefect {version.json()}"


def _gpu(settings: Settings) -> str:
    """TensorFlow is asked only where there is a driver: it takes its time to import."""
    if shutil.which("nvidia-smi") is None:
        raise Note("no NVIDIA driver on this machine: training runs on its CPU")
    script = "import tensorflow as tf; print(len(tf.config.list_physical_devices('GPU')))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    if done.returncode or not int(done.stdout.strip() or 0):
        raise FailedError("there is a driver, but TensorFlow finds no GPU")
    return f"{done.stdout.strip()} for TensorFlow"


PROBES: tuple[tuple[str, Probe, str], ...] = (
    (
        "S3",
        _s3,
        (
            "check bucket, s3_endpoint, s3_region and s3_profile in ssclass.toml, the credentials, and the policy that "
            "`ssclass bucket setup --print` shows; `ssclass bucket setup` makes the bucket"
        ),
    ),
    ("S3 conditional PUT", _conditional, "mend S3 first"),
    ("S3 notifications", _notification, "mend S3 first; the pipeline's policy has s3:GetBucketNotification"),
    ("DVC remote", _dvc, "mend S3 first; then see `dvc remote list` in the workspace: its remote is store"),
    (
        "git origin",
        probe_push,
        (
            "check `git remote -v` in the workspace, that this user may push to main and tags without being asked for "
            "a password, and that origin does not protect main from it"
        ),
    ),
    ("git history", probe_history, "`ssclass verify` lists what is wrong, and --repair makes lost tags again"),
    ("params.yaml", _params, "correct the value, commit and push"),
    (
        "MLflow runs",
        _mlflow,
        (
            "start the server, or correct mlflow_uri in ssclass.toml or SSCLASS_MLFLOW_URI; set "
            "MLFLOW_TRACKING_USERNAME and _PASSWORD where it wants them; it needs --serve-artifacts"
        ),
    ),
    ("MLflow registry", _registry, "mend MLflow runs first; the registry needs a database behind the server"),
    (
        "Prefect",
        _prefect,
        (
            "start the server, or correct prefect_url in ssclass.toml or SSCLASS_PREFECT_URL; set "
            "PREFECT_API_AUTH_STRING or PREFECT_API_KEY where it wants one"
        ),
    ),
    ("GPU", _gpu, "install tensorflow[and-cuda] of the version in requirements.lock, or train on the CPU"),
)
