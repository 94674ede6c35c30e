"""Events that tell Prefect, and by its automations people, what happened.

ssclass.batch.arrived    a hint: a batch may be waiting (payload: batch, count, source)
ssclass.batch.held       a batch was held, a person decides (batch, reason)
ssclass.batch.unlike     a batch was taken in, and is unlike those before it (batch, reason)
ssclass.model.promoted   the alias moved (version, key, reason, champion's scores)
ssclass.model.rejected   the candidate was not better (key, reason, scores)
ssclass.retrain.failed   a retrain ended without a decision (reason)
"""

from __future__ import annotations

import logging
import os
import uuid
from datetime import UTC, datetime
from typing import Any

from ssclass.errors import FailedError
from ssclass.names import resource_of
from ssclass.secrets import without_secrets
from ssclass.settings import Settings
from ssclass.text import message, shown

log = logging.getLogger(__name__)

TAKEN = (201, 202, 204)
"""What a Prefect server says of events that it took: 204; Prefect Cloud may say that it made or will make something."""


def post(event: str, resource: str, payload: dict[str, Any]) -> None:
    """Give one event to the Prefect server of this process; FailedError unless it says that it took it.

    Prefect's own `emit_event` sends later, and hides whether that worked.
    """
    import httpx
    from prefect.client.orchestration import get_client

    resource = shown(without_secrets(resource), 200)
    body = {
        "id": str(uuid.uuid4()),
        "event": event,
        "occurred": datetime.now(UTC).isoformat(),
        "resource": {"prefect.resource.id": resource, "prefect.resource.name": resource.rpartition(".")[2]},
        "payload": _fit(payload),
    }
    try:
        with get_client(sync_client=True) as client:
            answer = client.request("POST", "/events", json=[body])
    except (httpx.HTTPError, RuntimeError) as error:
        raise FailedError(
            f"Prefect did not take the event {event} ({without_secrets(str(error))}); "
            "check prefect_url and that the server runs"
        ) from error
    if answer.status_code not in TAKEN:
        said = shown(without_secrets(answer.text), 200)
        raise FailedError(f"Prefect answered {answer.status_code} to the event {event}: {said}; see the server's log")


def _fit(value: Any) -> Any:
    """A payload that may be sent to people: no secrets, each text on one line."""
    if isinstance(value, dict):
        return {name: _fit(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_fit(each) for each in value]
    return message(without_secrets(value)) if isinstance(value, str) else value


def tell(settings: Settings, event: str, resource: str, **payload: Any) -> None:
    """Post a notice about ``ssclass.<kind>.<id>``, under this workspace's name, where there is a server to post to.

    A notice that fails is logged: the ledger has it all.
    """
    if not (settings.prefect_url or os.environ.get("PREFECT__FLOW_RUN_ID")):
        return
    try:
        post(
            event, resource_of(settings, resource), {"bucket": settings.bucket, "model": settings.model_name, **payload}
        )
    except FailedError as error:
        log.warning("%s", error)
