"""Encoders: named networks, their features and first weights."""
