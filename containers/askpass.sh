#!/bin/sh
# Git runs it (GIT_ASKPASS) for the login of the origin, which is in the environment; other hosts get nothing.
case "$1" in
*"'http://$ORIGIN_HOST'"*) printf '%s\n' "$ORIGIN_USER" ;;
*"'http://$ORIGIN_USER@$ORIGIN_HOST'"*) printf '%s\n' "$ORIGIN_PASSWORD" ;;
*) exit 1 ;;
esac
