#!/bin/sh
# Once, and harmless again: S3's users, the origin, the workspace in it, the bucket's notifications, the deployments.
set -eu
python -P -m ssclass.stack.identities
unset MINIO_ROOT_USER MINIO_ROOT_PASSWORD
if [ ! -d /git/workspace.git ]; then
    git init --quiet --bare --initial-branch=main /git/workspace.git
fi
rm -rf /tmp/workspace
ssclass init /tmp/workspace --git "$SSCLASS_GIT" --bucket "$SSCLASS_BUCKET"
ssclass bucket setup --notify arn:minio:sqs:us-east-1:BATCH:webhook --workspace /tmp/workspace
ssclass deploy --git --workspace /tmp/workspace
