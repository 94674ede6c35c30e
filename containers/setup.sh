#!/bin/sh
# Once, and harmless again: the origin, the workspace in it, the bucket with its notifications, the deployments.
set -eu
if [ ! -d /git/workspace.git ]; then
    git init --quiet --bare --initial-branch=main /git/workspace.git
fi
rm -rf /tmp/workspace
ssclass init /tmp/workspace --git "$SSCLASS_GIT" --bucket "$SSCLASS_BUCKET"
ssclass bucket setup --notify arn:minio:sqs:us-east-1:BATCH:webhook --workspace /tmp/workspace
ssclass deploy --git --workspace /tmp/workspace
