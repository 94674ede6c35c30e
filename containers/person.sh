#!/bin/sh
# A command of a person, in a fresh clone of the workspace: docs/running.md, "Containers", has what for.
set -eu
unset MINIO_ROOT_USER MINIO_ROOT_PASSWORD
where=$(mktemp -d)/workspace
ssclass init "$where" --git "$SSCLASS_GIT" --bucket "$SSCLASS_BUCKET" >&2
cd "$where"
exec "$@"
