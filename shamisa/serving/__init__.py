"""Scores over HTTP: batches under load, limits, the service and its page."""
