"""What a line of the ledger must say, by its kind; docs/formats.md lists the rest.

Only what the state is made of is required: lines of older versions lack other fields, those of newer ones have more.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

Count = Annotated[int, Field(ge=0, le=10**12)]
Number = Annotated[int, Field(ge=1, le=10**9)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)


class _Numbered(_Body):
    sequence: Number | None = None


class _Test(_Body):
    right: Count
    n: Count


class _Delivery(_Body):
    batch: str
    etag: str
    marked: str | None = None
    contents: str | None = None


class _Ingest(_Delivery):
    sequence: Number
    md5: str | None = None
    receipt: dict[str, Any] | None = None
    champion_test: _Test | None = None


class _Marker(_Numbered, _Delivery):
    pass


class _Held(_Marker):
    decision: Literal["HELD"]
    reason: str


class _Right(_Body):
    right: Count


class _Champion(_Right):
    key: str


class _Holdout(_Body):
    size: Count
    digest: str | None = None


class _Decision(_Numbered):
    decision: Literal["PROMOTED", "REJECTED"]
    reason: str
    key: str
    batches: list[str]
    candidate: _Right
    champion: _Champion | None
    holdout: _Holdout
    cross_validated: _Test | None = None
    run_id: str | None = None


class _Revoke(_Numbered):
    batch: str


class _Forget(_Numbered):
    markers: list[Annotated[list[str], Field(min_length=3, max_length=3)]] = []


class _Rollback(_Numbered):
    key: str
    number: Number


class _Freeze(_Numbered):
    reason: str


BODIES: dict[str, type[_Body]] = {
    "ingest": _Ingest,
    "decision": _Decision,
    "admit": _Marker,
    "drop": _Marker,
    "revoke": _Revoke,
    "forget": _Forget,
    "rollback": _Rollback,
    "freeze": _Freeze,
    "unfreeze": _Numbered,
}


def what_is_wrong(kind: str, body: dict[str, Any]) -> str | None:
    """The first field of an event's body that is missing or of another type, in words; None where there is none."""
    model = _Held if kind == "decision" and body.get("decision") == "HELD" else BODIES[kind]
    try:
        model.model_validate(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
    return None
