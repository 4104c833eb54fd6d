"""Certified accuracy by randomised smoothing: a lower bound that no attack can break."""
