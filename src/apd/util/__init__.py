"""Helpers that know nothing of CLIP: files, tensors, progress, devices, versions."""
