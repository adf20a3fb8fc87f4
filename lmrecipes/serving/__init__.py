"""Finished models as a service: batching, limits, metrics, and what it can bear."""
