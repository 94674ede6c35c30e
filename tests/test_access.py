"""The policies of `ssclass bucket setup` against every call that the code makes, whoever makes it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from ssclass.data.submit import submit
from ssclass.demo.drawings import draw, junk
from ssclass.model.features import FeatureMemo, Features
from ssclass.model.spec import FeatureSpec
from ssclass.serving.collected import collected, keep, remove_old
from ssclass.store import Store
from ssclass.upkeep.bucket import ROLES, notify, plan, policy, setup
from ssclass.upkeep.finish import finish_forgetting
from ssclass.upkeep.forget import forget
from ssclass.upkeep.gc import collect
from ssclass.workspace.create import create
from ssclass.workspace.dvc import repository
from ssclass.workspace.workspace import Workspace
from tests.support.pipelines import CLASSES, Command, ingest_all

ACTIONS = {
    "GetObject": "s3:GetObject",
    "HeadObject": "s3:GetObject",
    "PutObject": "s3:PutObject",
    "CreateMultipartUpload": "s3:PutObject",
    "UploadPart": "s3:PutObject",
    "CompleteMultipartUpload": "s3:PutObject",
    "AbortMultipartUpload": "s3:AbortMultipartUpload",
    "DeleteObject": "s3:DeleteObject",
    "DeleteObjects": "s3:DeleteObject",
    "ListObjectsV2": "s3:ListBucket",
    "ListObjects": "s3:ListBucket",
    "HeadBucket": "s3:ListBucket",
    "ListObjectVersions": "s3:ListBucketVersions",
}
OF_A_VERSION = {"s3:GetObject": "s3:GetObjectVersion", "s3:DeleteObject": "s3:DeleteObjectVersion"}


@dataclass(frozen=True)
class Call:
    """An action as AWS names it, the key it is about, and the prefix of a listing."""

    action: str
    key: str
    prefix: str | None = None


@contextmanager
def recorded(bucket: str) -> Iterator[set[Call]]:
    """Every S3 call of this process while the block runs, by boto3 or by DVC's aiobotocore."""
    from botocore.hooks import HierarchicalEmitter

    calls: set[Call] = set()
    emit = HierarchicalEmitter._emit

    def note(event_name: str, arguments: dict[str, Any]) -> None:
        if not event_name.startswith("before-send.s3."):
            return
        operation = event_name.rsplit(".", 1)[1]
        at = urlsplit(arguments["request"].url)
        key = unquote(at.path).lstrip("/").removeprefix(bucket).lstrip("/")
        if operation == "CopyObject":
            source = arguments["request"].headers["x-amz-copy-source"]
            source = source.decode() if isinstance(source, bytes) else source
            calls.add(Call("s3:GetObject", unquote(source).lstrip("/").removeprefix(f"{bucket}/")))
            calls.add(Call("s3:PutObject", key))
            return
        action = ACTIONS[operation]
        if "versionId" in parse_qs(at.query):
            action = OF_A_VERSION[action]
        prefix = parse_qs(at.query).get("prefix", [""])[0] if operation.startswith("List") else None
        calls.add(Call(action, key, prefix))

    def spy(self: Any, event_name: str, kwargs: dict[str, Any], *args: Any, **more: Any) -> Any:
        note(event_name, kwargs)
        return emit(self, event_name, kwargs, *args, **more)

    from aiobotocore.hooks import AioHierarchicalEmitter

    aio = AioHierarchicalEmitter._emit

    async def aio_spy(self: Any, event_name: str, kwargs: dict[str, Any], *args: Any, **more: Any) -> Any:
        note(event_name, kwargs)
        return await aio(self, event_name, kwargs, *args, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HierarchicalEmitter, "_emit", spy)
        patch.setattr(AioHierarchicalEmitter, "_emit", aio_spy)
        yield calls


def allows(document: dict[str, Any], bucket: str, call: Call) -> bool:
    """What IAM would answer, for the little of its language that the policies use."""
    resource = f"arn:aws:s3:::{bucket}" + (f"/{call.key}" if call.key else "")
    for statement in document["Statement"]:
        if call.action not in statement["Action"]:
            continue
        if not any(fnmatchcase(resource, pattern) for pattern in statement["Resource"]):
            continue
        wanted = statement.get("Condition", {}).get("StringLike", {}).get("s3:prefix")
        if wanted is None or any(fnmatchcase(call.prefix or "", pattern) for pattern in wanted):
            return True
    return False


def refused(calls: set[Call], workspace: Workspace, role: str) -> list[Call]:
    document = policy(workspace.settings.place, role)
    return sorted((call for call in calls if not allows(document, workspace.settings.bucket, call)), key=str)


@pytest.fixture(params=["", "shops/one"])
def workspace(s3: Store, tmp_path: Path, request: pytest.FixtureRequest) -> Workspace:
    at = {"bucket": s3.bucket, "s3_endpoint": s3.settings.s3_endpoint or "", "s3_region": "us-east-1"}
    return create(tmp_path / "workspace", {**at, "s3_prefix": request.param} if request.param else at)


def test_each_role_may_do_what_the_code_does_for_it(workspace: Workspace, tmp_path: Path) -> None:
    bucket, full = workspace.settings.bucket, workspace.store.full
    setup(workspace.store)
    draw(tmp_path / "one", CLASSES, 4, 1)
    junk(tmp_path / "one" / "sushi")
    with recorded(bucket) as calls:
        for _ in range(2):
            submit(workspace.store, tmp_path / "one", "one", CLASSES)
    assert Call("s3:PutObject", full("incoming/one/manifest.json")) in calls
    assert refused(calls, workspace, "sender") == []
    assert refused(calls, workspace, "pipeline") != []

    with recorded(bucket) as calls:
        ingest_all(workspace)
        memo, spec = FeatureMemo(tmp_path / "memo", workspace.store), FeatureSpec("b", "w", (32,), False)
        memo.get(spec, "digest", ())
        memo.put(spec, "digest", Features((), {}))
    assert Call("s3:PutObject", full("quarantine/one/reasons.json")) in calls
    assert any(call.action == "s3:PutObject" and call.key.startswith(full("dvc/")) for call in calls)
    assert refused(calls, workspace, "pipeline") == []
    assert refused(calls, workspace, "sender") != []

    later = datetime.now(UTC) + timedelta(days=40)
    with recorded(bucket) as calls:
        collect(workspace, 30, keep_champions=True, dry_run=False, now=later)
    assert Call("s3:DeleteObject", full("quarantine/one/reasons.json")) in calls
    assert refused(calls, workspace, "pipeline") == []

    clone = create(tmp_path / "clone", {}, git=workspace.git("remote", "get-url", "origin"))
    with recorded(bucket) as calls, repository(clone.settings) as repo:
        repo.pull(targets=[str(clone.root / "data.dvc")])
    assert (clone.root / "data" / "one.parquet").exists()
    assert any(call.action == "s3:GetObject" for call in calls)
    assert refused(calls, workspace, "reader") == []


def test_forgetting_is_the_owners_and_every_retrain_may_finish_it(workspace: Workspace, tmp_path: Path) -> None:
    bucket, full = workspace.settings.bucket, workspace.store.full
    versioning = {"Status": "Enabled"}
    workspace.store.client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration=versioning)
    draw(tmp_path / "one", CLASSES, 2, 1)
    submit(workspace.store, tmp_path / "one", "one", CLASSES)
    ingest_all(workspace)
    memo, spec = FeatureMemo(tmp_path / "memo", workspace.store), FeatureSpec("b", "w", (32,), False)
    (shard,) = workspace.at().dataset.shards

    def write_back() -> None:
        memo.put(spec, shard.photos_digest, Features(tuple(row.sha256 for row in shard.rows), {}))
        holdout = {"holdout": [row.sha256 for row in shard.rows]}
        workspace.store.put("results/k1/result.json", json.dumps(holdout).encode())

    write_back()
    (data,) = (data for _, data in workspace.at().photos("one", {shard.rows[0].sha256}))
    with recorded(bucket) as calls:
        keep(workspace.store, data, shard.rows[0].sha256)
        remove_old(workspace.store, -1)
    assert any(call.action == "s3:DeleteObjectVersion" for call in calls)
    assert refused(calls, workspace, "pipeline") == [], "`ssclass serve` has that role"
    keep(workspace.store, data, shard.rows[0].sha256)
    with recorded(bucket) as calls:
        forget(workspace, [shard.rows[0].sha256], "…")
    assert any(call.action == "s3:DeleteObjectVersion" and call.key.startswith(full("incoming/")) for call in calls)
    assert refused(calls, workspace, "owner") == []
    assert list(collected(workspace.store)) == [], "nor what `ssclass serve` kept"
    write_back()
    with recorded(bucket) as calls:
        finish_forgetting(workspace)
    assert any(call.action == "s3:DeleteObjectVersion" and call.key.startswith(full("features/")) for call in calls)
    assert refused(calls, workspace, "pipeline") == []


def test_no_role_may_do_everything() -> None:
    for role in ROLES:
        for statement in policy("photos", role)["Statement"]:
            assert not any("*" in action for action in statement["Action"])
            assert all(resource.startswith("arn:aws:s3:::photos") for resource in statement["Resource"])
    assert not allows(policy("photos", "pipeline"), "photos", Call("s3:DeleteObject", "incoming/one/1.jpg"))
    assert not allows(policy("photos", "reader"), "photos", Call("s3:GetObject", "incoming/one/1.jpg"))
    assert not allows(policy("photos", "reader"), "photos", Call("s3:ListBucket", "", "incoming/"))


def test_setup_makes_bucket_folders_and_rules_and_leaves_others_rules(s3: Store, ssclass: Command, tmp_path) -> None:
    theirs = {"ID": "theirs", "Status": "Enabled", "Filter": {"Prefix": "logs/"}, "Expiration": {"Days": 1}}
    s3.set_lifecycle([theirs])
    for _ in range(2):
        setup(s3)
    assert [found.key for found in s3.list("")] == sorted(plan(s3.bucket)["folders"])
    rules = {rule["ID"]: rule for rule in s3.lifecycle()}
    assert set(rules) == {
        "theirs",
        "ssclass-quarantine",
        "ssclass-features",
        "ssclass-results",
        "ssclass-collect",
        "ssclass-parts",
    }
    assert rules["ssclass-quarantine"]["Expiration"]["Days"] == 180

    create(tmp_path / "workspace", {"bucket": s3.bucket, "s3_endpoint": s3.settings.s3_endpoint or ""})
    said = ssclass("bucket", "setup", "--print", "--workspace", tmp_path / "workspace")
    assert json.loads(said.stdout) == plan(s3.bucket)


def test_workspaces_that_share_a_bucket_set_up_their_own_part(s3: Store, tmp_path: Path) -> None:
    shops = [Store(s3.settings.model_copy(update={"s3_prefix": name})) for name in ("one", "two", "")]
    for shop in shops + shops:
        setup(shop)
    names = [rule["ID"] for rule in s3.lifecycle()]
    assert len(names) == len(set(names)) == 15
    assert {rule["Filter"]["Prefix"] for rule in s3.lifecycle() if "features" in rule["ID"]} == {
        "one/features/",
        "two/features/",
        "features/",
    }
    document = policy(f"{s3.bucket}/one", "owner")
    assert not allows(document, s3.bucket, Call("s3:GetObject", "two/incoming/1.jpg"))
    assert not allows(document, s3.bucket, Call("s3:GetObject", "incoming/1.jpg"))


def test_notifications_of_others_stay(s3: Store) -> None:
    queue = "arn:aws:sqs:us-east-1:123456789012:batches"
    theirs = {
        "Id": "theirs",
        "QueueArn": "arn:aws:sqs:us-east-1:123456789012:logs",
        "Events": ["s3:ObjectCreated:*"],
        "Filter": {"Key": {"FilterRules": [{"Name": "prefix", "Value": "logs/"}]}},
    }
    s3.client.put_bucket_notification_configuration(
        Bucket=s3.bucket, NotificationConfiguration={"QueueConfigurations": [theirs]}
    )
    for store in [s3, Store(s3.settings.model_copy(update={"s3_prefix": "shop"}))] * 2:
        notify(store, queue)
    found = s3.client.get_bucket_notification_configuration(Bucket=s3.bucket)["QueueConfigurations"]
    assert [rule["Id"] for rule in found].count("theirs") == 1
    about = [tuple(each["Value"] for each in rule["Filter"]["Key"]["FilterRules"]) for rule in found]
    assert sorted(about) == [
        ("incoming/", "/_SUCCESS"),
        ("incoming/", "/manifest.json"),
        ("logs/",),
        ("shop/incoming/", "/_SUCCESS"),
        ("shop/incoming/", "/manifest.json"),
    ]
