"""Prefect automations: a killed run is noticed and run again, and people hear of decisions."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection
from typing import Any

from ssclass.errors import ParamsError
from ssclass.names import automation_of
from ssclass.secrets import hide
from ssclass.settings import Settings
from ssclass.workspace.ledger import HELD, PROMOTED, REJECTED, SKIPPED

SILENT = 90  # seconds without a heartbeat (one every 30) after which a run counts as crashed
STARTING = 120  # seconds from a worker's taking a run to its running; a worker killed in between leaves it pending
NOTICES = ("ssclass.batch.held", "ssclass.model.promoted", "ssclass.model.rejected", "ssclass.retrain.failed")
ALARMS = ("ssclass.batch.unlike",)
NOTICES_BY = "notices by "
"""How the names of their automations begin, after the workspace's."""
SUBJECT = "{{ event.event }} {{ event.resource.name }}"
BODY = "{{ event.event }}: {{ event.payload.reason }}"
PAYLOAD = (
    '{"event": {{ event.event | tojson }}, "resource": {{ event.resource.id | tojson }}, '
    '"occurred": "{{ event.occurred }}", "payload": {{ event.payload | tojson }} }'
)


def crash_automations(settings: Settings, deployments: dict[str, str], elsewhere: Collection[str] = ()) -> list[Any]:
    """For deployment ids by name: lost runs become Crashed, and a crashed retrain runs again.

    A crashed training is left alone: the retrain that waits for it, or its successor, asks for another. `elsewhere`:
    names of those whose runs are not processes of a worker. They may be long in starting, as while an image is fetched,
    and their own worker sees when they do not.
    """
    near = [each for name, each in deployments.items() if name not in elsewhere] or ["none"]
    states = ("Completed", "Failed", "Cancelled", "Crashed", PROMOTED, REJECTED, HELD, SKIPPED)
    ended = [f"prefect.flow-run.{state}" for state in states]  # a retrain's final state is named by its decision
    silent: dict[str, Any] = {
        "name": automation_of(settings, "a run that fell silent has crashed"),
        "trigger": {
            "type": "event",
            "match": {"prefect.resource.id": ["prefect.flow-run.*"]},
            "match_related": {"prefect.resource.id": [f"prefect.deployment.{each}" for each in deployments.values()]},
            # Running: the first heartbeat comes only half a minute later
            "after": ["prefect.flow-run.Running", "prefect.flow-run.heartbeat"],
            "expect": ["prefect.flow-run.heartbeat", *ended],
            "for_each": ["prefect.resource.id"],
            "posture": "Proactive",
            "threshold": 1,
            "within": SILENT,
        },
        "actions": [
            {
                "type": "change-flow-run-state",
                "state": "CRASHED",
                "name": "Crashed",
                "message": f"no heartbeat for {SILENT} s",
            }
        ],
    }
    unstarted = {
        "name": automation_of(settings, "a run that did not start has crashed"),
        "trigger": {
            **silent["trigger"],
            "match_related": {"prefect.resource.id": [f"prefect.deployment.{each}" for each in near]},
            "after": ["prefect.flow-run.Pending"],
            "expect": [f"prefect.flow-run.{each}" for each in ("Running", "AwaitingConcurrencySlot", "Late")] + ended,
            "within": STARTING,
        },
        "actions": [
            {
                "type": "change-flow-run-state",
                "state": "CRASHED",
                "name": "Crashed",
                "message": f"not started within {STARTING} s",
            }
        ],
    }
    again = {
        "name": automation_of(settings, "a crashed retrain runs again"),
        "trigger": {
            "type": "event",
            "match": {"prefect.resource.id": ["prefect.flow-run.*"]},
            "match_related": {"prefect.resource.id": [f"prefect.deployment.{deployments['retrain']}"]},
            "expect": ["prefect.flow-run.Crashed"],
            "posture": "Reactive",
            "threshold": 1,
            "within": 0,
        },
        "actions": [
            {
                "type": "run-deployment",
                "source": "selected",
                "deployment_id": deployments["retrain"],
                "parameters": {
                    "rerun": {
                        "__prefect_kind": "json",
                        "value": {
                            "__prefect_kind": "jinja",
                            "template": "{{ (flow_run.parameters.rerun or 0) + 1 }}",
                        },
                    }
                },
            }
        ],
    }
    return [_automation(each) for each in (silent, unstarted, again)]


def _automation(body: dict[str, Any]) -> Any:
    from prefect.events.schemas.automations import AutomationCore

    return AutomationCore.model_validate(body)


def notice_automations(settings: Settings, client: Any, urls: list[str]) -> list[Any]:
    """One automation a URL: what Apprise knows (mail, Slack, Teams, Discord, …) gets a message, another a POST of JSON.

    Apprise knows a service by its own scheme, as in ``mailto://``, or by the address that the service itself gives,
    as in ``https://hooks.slack.com/…``. ParamsError for an address that is neither that nor ``http(s)://``.
    """
    found = []
    hide(*urls)  # a webhook's address is as good as a password
    for url in urls:
        name = hashlib.sha256(url.encode()).hexdigest()[:8]
        service = _service(url)
        if service is not None:
            kind, block = service, _message_block(client, f"{settings.name}-{service}-{name}", url)
            action = {"type": "send-notification", "block_document_id": block, "subject": SUBJECT, "body": BODY}
        elif url.startswith(("http://", "https://")):
            kind, block = "webhook", _webhook_block(client, f"{settings.name}-webhook-{name}", url)
            action = {"type": "call-webhook", "block_document_id": block, "payload": PAYLOAD}
        else:
            raise ParamsError(
                "--notify: neither a URL that starts with http: or https:, nor one that Apprise knows, as in "
                "mailtos://user:password@smtp.example.org?to=me@example.org or slack://TOKEN_A/TOKEN_B/TOKEN_C"
            )
        trigger = {
            "type": "event",
            "match": {"prefect.resource.id": f"{settings.name}.*"},
            "expect": [*NOTICES, *ALARMS],
            "posture": "Reactive",
            "threshold": 1,
            "within": 0,
        }
        called = automation_of(settings, f"{NOTICES_BY}{kind} {name}")
        found.append(_automation({"name": called, "trigger": trigger, "actions": [action]}))
    return found


def _service(url: str) -> str | None:
    """The service that Apprise reaches by a URL, as a word: mail, slack, discord; None when it knows none."""
    from apprise import Apprise

    if url.startswith(("mailto://", "mailtos://")):
        return "mail"
    found = Apprise.instantiate(url, suppress_exceptions=True)
    return re.sub(r"[^a-z0-9]+", "-", str(found.service_name).lower()).strip("-") if found else None


def _webhook_block(client: Any, name: str, url: str) -> Any:
    from prefect.blocks.webhook import Webhook
    from pydantic import SecretStr

    return _saved(Webhook(method="POST", url=SecretStr(url), allow_private_urls=True), name)


def _message_block(client: Any, name: str, url: str) -> Any:
    # Prefect's blocks hand any URL to Apprise, whatever service they are named for.
    from prefect.blocks.notifications import SlackWebhook
    from pydantic import SecretStr

    return _saved(SlackWebhook(url=SecretStr(url)), name)


def _saved(block: Any, name: str) -> Any:
    return block.save(name, overwrite=True)
