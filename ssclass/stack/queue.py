"""S3's notifications from SQS."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from ssclass.settings import Settings

WAIT = 10  # seconds that SQS holds a request open for a message
log = logging.getLogger(__name__)


def queue_client(settings: Settings, url: str) -> Any:
    """boto3's SQS client for a queue; one outside AWS is reached at its URL's own host."""
    from ssclass.store import session

    parts = urlsplit(url)
    aws = (parts.hostname or "").endswith((".amazonaws.com", ".amazonaws.com.cn"))
    endpoint = None if aws else f"{parts.scheme}://{parts.netloc}"
    return session(settings).client("sqs", endpoint_url=endpoint)


def poll(settings: Settings, url: str, heard: Callable[[bytes, str], None], stop: threading.Event) -> None:
    """Hand every message to `heard`, then delete it: it was a hint, and has been taken."""
    client, pause = None, 1.0
    while not stop.is_set():
        try:
            client = client or queue_client(settings, url)
            answer = client.receive_message(QueueUrl=url, MaxNumberOfMessages=10, WaitTimeSeconds=WAIT)
            for message in answer.get("Messages", ()):
                try:
                    heard(message["Body"].encode(errors="replace"), "sqs")
                except Exception as error:  # what we cannot make sense of now, we never shall
                    log.warning("SQS: a message of %d characters: %s; left out", len(message["Body"]), error)
                client.delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])
            pause = 1.0
        except Exception as error:  # the queue may be away for a while; the sweep does without it
            log.warning("SQS %s: %s; trying again", url, error)
            stop.wait(pause)
            pause = min(2 * pause, 60)
