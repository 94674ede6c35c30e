"""MLflow: runs, the registry, what they say of a retrain, and the alias that follows the ledger."""
