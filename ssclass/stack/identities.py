"""The users of an S3 server of our own: one a role, each with the policy of `ssclass bucket setup`, none of them root.

``python -P -m ssclass.stack.identities`` makes them on the server of the settings, as ``MINIO_ROOT_USER``; passwords
come from ``S3_<ROLE>_PASSWORD``. MinIO and JuiceFS's gateway speak this; in AWS the account's owner attaches the
policies that ``ssclass bucket setup --print`` shows.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from ssclass.errors import FailedError
from ssclass.upkeep.bucket import ROLES, policy

PREFIX = "ssclass-"
"""Before the role, in the name of a user and of its policy."""


def user_of(role: str) -> str:
    """The access key of a role."""
    return f"{PREFIX}{role}"


def make_identities(endpoint: str, root: tuple[str, str], place: str, passwords: Mapping[str, str]) -> None:
    """Make or update a user for each role in `passwords`, as the root user; again changes nothing.

    `place`: the bucket that they may use, or bucket/prefix.

    FailedError where the server has no users of its own, or does not take these.
    """
    from minio import MinioAdmin
    from minio.credentials.providers import StaticProvider
    from minio.error import MinioAdminException
    from urllib3.exceptions import HTTPError

    at = urlsplit(endpoint)
    admin = MinioAdmin(endpoint=at.netloc, credentials=StaticProvider(*root), secure=at.scheme == "https")
    try:
        with tempfile.TemporaryDirectory() as folder:
            for role, password in passwords.items():
                name, file = user_of(role), Path(folder) / "policy.json"
                file.write_text(json.dumps(policy(place, role)))
                admin.user_add(name, password)
                admin.policy_add(name, str(file))
                admin.policy_set(name, user=name)
    except (MinioAdminException, HTTPError, ValueError) as error:
        raise FailedError(f"S3 at {endpoint}: its users cannot be made ({error}); see its log") from error


def main() -> None:
    """Make every role's user, with what the environment says."""
    environment = os.environ
    make_identities(
        environment["SSCLASS_S3_ENDPOINT"],
        (environment["MINIO_ROOT_USER"], environment["MINIO_ROOT_PASSWORD"]),
        "/".join(filter(None, (environment["SSCLASS_BUCKET"], environment.get("SSCLASS_S3_PREFIX")))),
        {role: environment[f"S3_{role.upper()}_PASSWORD"] for role in ROLES},
    )


if __name__ == "__main__":
    main()
