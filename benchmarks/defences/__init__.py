"""Planted defences: models that look robust and are not, and which checks notice; see docs/reliability.md."""
