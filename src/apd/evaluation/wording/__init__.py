"""Accuracy when the words for the classes change: typos, searched character edits, synonyms, other templates."""
