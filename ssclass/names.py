"""What a workspace is called in services that it may share: each name there says whose it is.

The name `ssclass` is that of workspaces without one of their own, and gives the names that they always had.
"""

from __future__ import annotations

from ssclass.settings import DEFAULT_NAME, Settings

RETRAIN, TRAIN = "retrain", "train"
"""The flows."""
GPU = "gpu"


def deployment_of(settings: Settings, name: str) -> str:
    """The name on the server of a deployment that deployments.yaml calls `name`."""
    if settings.name == DEFAULT_NAME:
        return name
    return settings.name if name == RETRAIN else f"{settings.name}-{name}"


def retrain_deployment(settings: Settings) -> str:
    """The deployment that retrains, as flow/deployment."""
    return f"{RETRAIN}/{deployment_of(settings, RETRAIN)}"


def train_deployment(settings: Settings) -> str:
    """The deployment that trains, as flow/deployment."""
    return f"{TRAIN}/{deployment_of(settings, GPU)}"


def pool_of(settings: Settings, name: str) -> str:
    """The work pool that deployments.yaml calls `name`; a pool of a person's own making keeps its name."""
    if settings.name == DEFAULT_NAME or name not in (DEFAULT_NAME, GPU):
        return name
    return settings.name if name == DEFAULT_NAME else f"{settings.name}-{name}"


def resource_of(settings: Settings, resource: str) -> str:
    """The resource of an event, which this package calls `ssclass.batch.…`, by its owner's name."""
    return f"{settings.name}.{resource.removeprefix(f'{DEFAULT_NAME}.')}"


def automation_of(settings: Settings, name: str) -> str:
    """The name of an automation, or of a trigger that deployments.yaml calls `ssclass: …`, by its owner's name."""
    return f"{settings.name}: {name.removeprefix(f'{DEFAULT_NAME}: ')}"
