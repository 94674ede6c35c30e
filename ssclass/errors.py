"""Every error that ssclass raises on purpose.

    SsclassError
    ├── InputError            the person can mend it; exit code 2
    │   ├── ParamsError       params.yaml or ssclass.toml says something unusable
    │   ├── BatchError        a batch or a folder of photos cannot be taken
    │   ├── WorkspaceError    not a workspace, uncommitted changes, diverged
    │   └── NotFoundError     no such model, batch, photo or version
    └── FailedError           something outside did not work; exit code 1
        ├── StoreError        S3
        │   ├── ObjectError   S3 will not do it with this one object, however often it is asked
        │   └── ChangedError  an object is no longer the one that was looked at; look again
        ├── TrackingError     MLflow
        ├── WeightsError      backbone weights cannot be had
        ├── LostRaceError     another writer pushed first; start over from its commit
        └── OvertakenError    another writer changed the question meanwhile; ask the new one

A message names the thing, says what is wrong with it, and what to do. The command line prints that
one line; the traceback shows only with ``--debug``. What others wrote and a message quotes (keys, labels, answers of
servers) can neither end the line nor act on a terminal: `ssclass.text` spells and cuts it.
"""

from ssclass.secrets import without_secrets
from ssclass.text import message

LONGEST = 20_000  # characters that an error keeps; ten times what it shows


class SsclassError(Exception):
    """Base of all errors of this package."""

    exit_code = 1

    def __init__(self, *parts: object) -> None:
        # here and not where it is shown: a log may show its repr, and Prefect keeps both
        super().__init__(*(without_secrets(_cut(part)) if isinstance(part, str) else part for part in parts))

    def __str__(self) -> str:
        return message(super().__str__())


def _cut(text: str) -> str:
    """Both ends of a text that is longer than any message that is shown."""
    return text if len(text) <= LONGEST else f"{text[: LONGEST // 2]} … {text[-LONGEST // 2 :]}"


class InputError(SsclassError):
    """The person can mend it."""

    exit_code = 2


class ParamsError(InputError):
    """params.yaml or ssclass.toml says something unusable."""


class BatchError(InputError):
    """A batch or a folder of photos cannot be taken."""


class WorkspaceError(InputError):
    """The workspace is missing, dirty or diverged."""


class NotFoundError(InputError):
    """No such model, batch, photo or version."""


class FailedError(SsclassError):
    """Something outside did not work."""


class StoreError(FailedError):
    """S3 did not do what was asked."""


class ObjectError(StoreError):
    """S3 will not do it with this one object, however often it is asked; with others it may.

    `code`: S3's own, like InvalidObjectState (archived) or AccessDenied.
    """

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


class ChangedError(StoreError):
    """An object was written again between two looks at it."""


class TrackingError(FailedError):
    """MLflow did not do what was asked."""


class WeightsError(FailedError):
    """The weights of a backbone cannot be had."""


class DistrustedError(FailedError):
    """Something that others wrote is not what it says it is; it was not used, and asked again it would be the same."""


class LostRaceError(FailedError):
    """Another writer pushed first."""


class OvertakenError(FailedError):
    """Another writer changed the question while it was being answered."""
