"""The bucket for one's own AWS: its folders, its lifecycle rules, and what each role may do, no more.

A *sender* writes batches; the *pipeline* takes them in and decides; a *worker* trains for it; *tracking* is the MLflow
server, with its own folder; a *reader* pulls data versions and models with DVC; the *owner* is the person at the
workspace, who also forgets photos and prepares the bucket. tests/test_access.py holds the policies against the calls
that the code makes.
"""

from __future__ import annotations

import re
from typing import Any

from ssclass.data.batches import INCOMING
from ssclass.data.build import QUARANTINE
from ssclass.errors import ParamsError, StoreError
from ssclass.secrets import without_secrets
from ssclass.serving.collected import COLLECT, MOST_DAYS
from ssclass.store import Store
from ssclass.text import shown

ROLES = ("sender", "pipeline", "worker", "tracking", "reader", "owner")
FOLDERS = (INCOMING, QUARANTINE, "features", "results", "dvc", COLLECT)
"""Everything in the bucket. `dvc/`, `incoming/` and `collect/` cannot be made again by ssclass."""

ARTIFACTS = "mlflow"
"""Where a tracking server of ours keeps its artifacts, if it keeps them in the bucket."""

QUEUE = re.compile(r"arn:[a-z0-9-]+:sqs:[a-z0-9-]*:[A-Za-z0-9_-]+:[A-Za-z0-9_.-]+")
"""ARN of an SQS queue, or of a webhook of MinIO or JuiceFS, which they name like one."""
QUARANTINE_DAYS, FEATURE_DAYS, RESULT_DAYS = 180, 365, 30
PARTS_DAYS = 7  # of an upload that never ended


def policy(place: str, role: str) -> dict[str, Any]:
    """The IAM policy document of a role, for a bucket, or for a workspace's part of it: bucket/prefix."""
    bucket, _, prefix = place.partition("/")
    arn, within = f"arn:aws:s3:::{bucket}", f"{prefix}/" if prefix else ""

    def objects(*folders: str) -> list[str]:
        return [f"{arn}/{within}{folder}/*" for folder in folders]

    def listing(*folders: str, versions: bool = False) -> dict[str, Any]:
        prefixes = [f"{within}{folder}/{end}" for end in ("*", "") for folder in folders]
        return {
            "Sid": "List",
            "Effect": "Allow",
            "Action": ["s3:ListBucket", *(["s3:ListBucketVersions"] if versions else [])],
            "Resource": [arn],
            "Condition": {"StringLike": {"s3:prefix": prefixes}},
        }

    def allow(name: str, actions: list[str], resources: list[str]) -> dict[str, Any]:
        return {"Sid": name, "Effect": "Allow", "Action": actions, "Resource": resources}

    statements = {
        "sender": [
            # reading: a batch submitted again is compared with what is there, not overwritten
            allow("Send", ["s3:PutObject", "s3:GetObject", "s3:AbortMultipartUpload"], objects(INCOMING)),
            listing(INCOMING),
        ],
        "pipeline": [
            allow("Read", ["s3:GetObject", "s3:GetObjectVersion"], objects(*FOLDERS)),
            allow(
                "Write",
                ["s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"],
                objects(*(folder for folder in FOLDERS if folder != INCOMING)),
            ),
            # what a `forget` began, every retrain finishes: older versions of its objects too
            allow("Forget", ["s3:DeleteObjectVersion"], objects("features", "results", "dvc", QUARANTINE, COLLECT)),
            listing(*FOLDERS, versions=True),
            allow("Notice", ["s3:GetBucketNotification", "s3:GetBucketLocation"], [arn]),
        ],
        "worker": [
            allow("Read", ["s3:GetObject"], objects("dvc", "features", "results")),
            allow("Write", ["s3:PutObject", "s3:AbortMultipartUpload"], objects("features", "results")),
            listing("dvc", "features", "results"),
        ],
        "tracking": [
            allow(
                "Artifacts",
                ["s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"],
                objects(ARTIFACTS),
            ),
            listing(ARTIFACTS),
        ],
        "owner": [
            allow(
                "Everything",
                [
                    *("s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"),
                    *("s3:GetObjectVersion", "s3:DeleteObjectVersion"),
                ],
                objects(*FOLDERS, ARTIFACTS),
            ),
            allow(
                "Prepare",
                [
                    *("s3:CreateBucket", "s3:ListBucket", "s3:ListBucketVersions", "s3:GetBucketLocation"),
                    *("s3:GetBucketNotification", "s3:PutBucketNotification"),
                    *("s3:GetLifecycleConfiguration", "s3:PutLifecycleConfiguration"),
                ],
                [arn],
            ),
        ],
        "reader": [allow("Read", ["s3:GetObject"], objects("dvc")), listing("dvc")],
    }
    return {"Version": "2012-10-17", "Statement": statements[role]}


def lifecycle(prefix: str = "") -> dict[str, Any]:
    """The lifecycle rules of a bucket, or of a prefix in it: what can be made again, or was refused, goes in time."""
    rules = [
        _rule(prefix, folder, {"Expiration": {"Days": days}})
        for folder, days in (
            (QUARANTINE, QUARANTINE_DAYS),
            ("features", FEATURE_DAYS),
            ("results", RESULT_DAYS),
            (COLLECT, MOST_DAYS),
        )
    ]
    return {
        "Rules": [*rules, _rule(prefix, "", {"AbortIncompleteMultipartUpload": {"DaysAfterInitiation": PARTS_DAYS}})]
    }


def _rule(prefix: str, folder: str, what: dict[str, Any]) -> dict[str, Any]:
    below = "".join(f"{part}/" for part in (prefix, folder) if part)
    return {"ID": _name(prefix, folder or "parts"), "Status": "Enabled", "Filter": {"Prefix": below}, **what}


def _name(prefix: str, what: str) -> str:
    """What a rule of ours is called; those of other workspaces in the bucket are called otherwise."""
    return "-".join(part for part in ("ssclass", prefix.replace("/", "-"), what) if part)


def plan(place: str) -> dict[str, Any]:
    """Everything that `setup` does, and the policies, which only the account's owner can attach. JSON-able."""
    bucket, _, prefix = place.partition("/")
    return {
        "bucket": bucket,
        "folders": ["".join(f"{part}/" for part in (prefix, folder) if part) for folder in FOLDERS],
        "lifecycle": lifecycle(prefix),
        "policies": {role: policy(place, role) for role in ROLES},
    }


def setup(store: Store) -> bool:
    """Make the bucket, the folders and the lifecycle rules; those of others stay. Again changes nothing.

    False where the server has no lifecycle rules: then what is old stays.
    """
    store.make_bucket()
    for folder in FOLDERS:
        if store.head(f"{folder}/") is None:
            store.put(f"{folder}/", b"")
    ours = lifecycle(store.settings.s3_prefix)["Rules"]
    names = {rule["ID"] for rule in ours}
    return store.set_lifecycle([*(rule for rule in store.lifecycle() if rule.get("ID") not in names), *ours])


def check_queue(arn: str) -> None:
    """Stop where this is no ARN of a queue or webhook; ParamsError says what one looks like."""
    if not QUEUE.fullmatch(arn):
        raise ParamsError(
            f"--notify {shown(arn, 100)}: not the ARN of a queue; give one as in "
            "arn:aws:sqs:eu-central-1:123456789012:batches, or arn:minio:sqs:us-east-1:BATCH:webhook"
        )


def notify(store: Store, arn: str) -> None:
    """Have the bucket tell the queue or webhook `arn` of our markers; whom it tells of other things stays.

    ParamsError where this is no ARN of a queue, StoreError where the server does not take it.
    """
    from botocore.exceptions import BotoCoreError, ClientError

    check_queue(arn)
    prefix, ours = store.settings.s3_prefix, []
    for number, suffix in enumerate(("/manifest.json", "/_SUCCESS"), 1):
        names = [{"Name": "prefix", "Value": store.full(f"{INCOMING}/")}, {"Name": "suffix", "Value": suffix}]
        ours.append(
            {
                "Id": _name(prefix, str(number)),
                "QueueArn": arn,
                "Events": ["s3:ObjectCreated:*"],
                "Filter": {"Key": {"FilterRules": names}},
            }
        )
    try:
        told = dict(store.client.get_bucket_notification_configuration(Bucket=store.bucket))
        told.pop("ResponseMetadata", None)
        others = [rule for rule in told.get("QueueConfigurations", ()) if not _is_ours(rule, ours)]
        store.client.put_bucket_notification_configuration(
            Bucket=store.bucket, NotificationConfiguration={**told, "QueueConfigurations": [*others, *ours]}
        )
    except (ClientError, BotoCoreError) as error:
        raise StoreError(
            f"s3://{store.place}: cannot tell {arn} of new batches ({shown(without_secrets(str(error)), 200)}); "
            "check that the queue is there, in the bucket's region, and that its policy lets this bucket send to it"
        ) from error


def _is_ours(rule: dict[str, Any], ours: list[dict[str, Any]]) -> bool:
    """Whether `notify` made a notification: by its name, or by what it asks for, as some servers rename it."""
    return any(rule.get("Id") == each["Id"] or _asks(rule) == _asks(each) for each in ours)


def _asks(rule: dict[str, Any]) -> list[tuple[str, str]]:
    """The keys that a notification is about: pairs of prefix or suffix, and its value."""
    found = rule.get("Filter", {}).get("Key", {}).get("FilterRules", ())
    return sorted((str(each["Name"]).lower(), str(each["Value"])) for each in found)
