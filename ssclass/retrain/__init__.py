"""A retrain's own logic: batches that wait, training, scores, the gate, the ledger, and telling what was decided."""
