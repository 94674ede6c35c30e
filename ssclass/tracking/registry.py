"""The registry of MLflow: a version for each champion of the ledger, and the alias on the one in force."""

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

ALIAS = "champion"


class Registry(Runs):
    """The registered model, which has the experiment's name."""

    def version_of(self, key: str) -> Any | None:
        """The registered version of a decision key."""
        with self.named():
            found = self.client.search_model_versions(f"name = '{self.name}' and tag.{KEY_TAG} = '{key}'")
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
            self._ensure_registered()
            for key in state.champions:
                if self.version_of(key) is None:
                    self._register(key, state.decisions[key], classifier_of, (cards or {}).get(key, ""))
            wanted = self.version_of(state.champion or "")
            assert wanted is not None, "each champion has a version by now"
            return str(wanted.version)

    def set_alias(self, version: str) -> None:
        """Point the alias at a version."""
        with self.named():
            self.client.set_registered_model_alias(self.name, ALIAS, version)

    def _ensure_registered(self) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self.client.get_registered_model(self.name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            self.client.create_registered_model(
                self.name, description="Champions of ssclass; the alias `champion` is the one in force."
            )

    def _register(
        self, key: str, event: Event, classifier_of: Callable[[str], Classifier | Adopted], description: str
    ) -> None:
        run = self.run_of(event)
        if run is None:
            raise TrackingError(
                f"MLflow at {self.settings.tracking_uri}: no run of the champion {key}; `ssclass rebuild` makes it "
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
        self.client.create_model_version(
            self.name,
            f"models:/{model_id}",
            run_id=run_id,
            tags=tags,
            description=description or event.body["reason"],
            model_id=model_id,
        )
        self._keep_one(key)

    def _keep_one(self, key: str) -> None:
        """Where two machines registered one champion at once, the first version stays."""
        found = self.client.search_model_versions(f"name = '{self.name}' and tag.{KEY_TAG} = '{key}'")
        for extra in sorted(found, key=lambda version: int(version.version))[1:]:
            self.client.delete_model_version(self.name, extra.version)
