#!/bin/sh
# Makes the passwords of compose.yaml: adds to .env in this folder those that it lacks. Only its owner reads the file.
set -eu
umask 077
touch .env
chmod 600 .env
for name in POSTGRES_PASSWORD WEBHOOK_SECRET PREFECT_PASSWORD MLFLOW_PASSWORD GIT_PASSWORD GIT_READ_PASSWORD \
    S3_PASSWORD S3_OWNER_PASSWORD S3_SENDER_PASSWORD S3_PIPELINE_PASSWORD S3_WORKER_PASSWORD S3_TRACKING_PASSWORD \
    S3_READER_PASSWORD SERVE_KEY; do
    grep -q "^$name=" .env || printf '%s=%s\n' "$name" "$(od -An -N20 -tx1 /dev/urandom | tr -d ' \n')" >>.env
done
