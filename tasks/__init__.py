"""Prefect tasks: retries and names around one call into ssclass each."""
