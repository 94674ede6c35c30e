"""The registry of MLflow: a version for each champion of the ledger, and the alias on the one in force.

The challenger is a version of a registered model of its own: what did not beat the champion is no version of the
champions' model, and their numbers have no gaps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ssclass.errors import TrackingError
from ssclass.tracking.runs import KEY_TAG, MODEL, Runs
from ssclass.tracking.score import compared
from ssclass.workspace.ledger import Event, State

if TYPE_CHECKING:
    from ssclass.model.adopted import Adopted
    from ssclass.model.classifier import Classifier

ALIAS, CHALLENGER = "champion", "challenger"
CHAMPIONS = "Champions of ssclass; the alias `champion` is the one in force."
CHALLENGERS = (
    "The candidate that came close to the champion, or waits until promotion may go on; it is nobody's to serve."
)


def challengers_of(name: str) -> str:
    """The registered model of the challenger beside that of the champions; no workspace can be called so."""
    return f"{name}.{CHALLENGER}"


class Registry(Runs):
    """The registered model, which has the experiment's name, and that of the challenger beside it."""

    @property
    def challengers(self) -> str:
        """The registered model of the challenger."""
        return challengers_of(self.name)

    def version_of(self, key: str, model: str | None = None) -> Any | None:
        """The registered version of a decision key; of the champions' model, unless another is named."""
        with self.named():
            found = self.client.search_model_versions(f"name = '{model or self.name}' and tag.{KEY_TAG} = '{key}'")
            return min(found, key=lambda version: int(version.version)) if found else None

    def alias(self) -> str | None:
        """The version that the alias points at; None when there is no model or no alias yet."""
        with self.named():
            found = self.client.search_registered_models(f"name = '{self.name}'")
            aliases = found[0].aliases if found else {}
            return str(aliases[ALIAS]) if ALIAS in aliases else None

    def register(
        self, state: State, classifier_of: Callable[[str], Classifier | Adopted], cards: dict[str, str] | None = None
    ) -> str | None:
        """Make a version for each champion of the ledger that has none; the version of the champion in force.

        `classifier_of` gives the classifier of a decision key that has none yet, `cards` descriptions for new versions.
        """
        if not state.champions:
            return None
        with self.named():
            self._ensure_registered(self.name, CHAMPIONS)
            for key in state.champions:
                if self.version_of(key) is None:
                    self._register(key, state.decisions[key], classifier_of, (cards or {}).get(key, ""))
            wanted = self.version_of(state.champion or "")
            assert wanted is not None, "each champion has a version by now"
            return str(wanted.version)

    def unregister(self, key: str) -> None:
        """Delete what is registered of a decision, as champion or challenger, so that it is registered anew."""
        with self.named():
            for model in (self.name, self.challengers):
                for version in self.client.search_model_versions(f"name = '{model}' and tag.{KEY_TAG} = '{key}'"):
                    self.client.delete_model_version(model, version.version)

    def set_alias(self, version: str) -> None:
        """Point the alias at a version."""
        with self.named():
            self.client.set_registered_model_alias(self.name, ALIAS, version)

    def challenger(self) -> str | None:
        """The decision key of the version that the alias `challenger` points at; None where there is none."""
        with self.named():
            found = self.client.search_registered_models(f"name = '{self.challengers}'")
            number = str(found[0].aliases.get(CHALLENGER)) if found else None
            versions = self.client.search_model_versions(f"name = '{self.challengers}'") if found else ()
            return next((each.tags.get(KEY_TAG) for each in versions if str(each.version) == number), None)

    def set_challenger(self, event: Event | None, classifier_of: Callable[[str], Classifier | Adopted]) -> None:
        """Make the candidate of a decision the challenger, or nobody; others' versions go, with their whole models.

        Their runs stay, as does what was trained.
        """
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        with self.named():
            kept = None
            if event is not None:
                key = event.body["key"]
                self._ensure_registered(self.challengers, CHALLENGERS)
                if self.version_of(key, self.challengers) is None:
                    self._register(key, event, classifier_of, f"**Challenger**: {event.body['reason']}.", CHALLENGER)
                version = self.version_of(key, self.challengers)
                assert version is not None, "it is registered by now"
                kept = str(version.version)
                self.client.set_registered_model_alias(self.challengers, CHALLENGER, kept)
            for each in self.client.search_model_versions(f"name = '{self.challengers}'"):
                if str(each.version) == kept:
                    continue
                self.client.delete_model_version(self.challengers, each.version)  # its alias goes with it
                for model in self.client.search_logged_models(
                    [self.experiment_id], f"source_run_id = '{each.run_id}' AND name = '{MODEL}'"
                ):
                    get_artifact_repository(model.artifact_location).delete_artifacts()
                    self.client.delete_logged_model(model.model_id)

    def _ensure_registered(self, name: str, description: str) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self.client.get_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            self.client.create_registered_model(name, description=description)

    def _register(
        self,
        key: str,
        event: Event,
        classifier_of: Callable[[str], Classifier | Adopted],
        description: str,
        what: str = ALIAS,
    ) -> None:
        run = self.run_of(event)
        if run is None:
            raise TrackingError(
                f"MLflow at {self.settings.tracking_uri}: no run of the {what} {key}; `ssclass rebuild` makes it "
                "anew from the ledger"
            )
        run_id = str(run.info.run_id)
        if MODEL not in self.models_of(run):
            self.log_model(run_id, key, event.body["data_version"], classifier_of(key))
        model_id = self.models_of(run)[MODEL].model_id
        tags = {
            KEY_TAG: key,
            "data_version": event.body["data_version"],
            "head": event.body["head"],
            "accuracy": f"{event.body['candidate']['accuracy']:.4f}",
            **compared(event),
        }
        model = self.name if what == ALIAS else self.challengers
        self.client.create_model_version(
            model,
            f"models:/{model_id}",
            run_id=run_id,
            tags=tags,
            description=description or event.body["reason"],
            model_id=model_id,
        )
        self._keep_one(model, key)

    def _keep_one(self, model: str, key: str) -> None:
        """Where two machines registered one decision at once, the first version stays."""
        found = self.client.search_model_versions(f"name = '{model}' and tag.{KEY_TAG} = '{key}'")
        for extra in sorted(found, key=lambda version: int(version.version))[1:]:
            self.client.delete_model_version(model, extra.version)
