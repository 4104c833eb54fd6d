"""Exact but faster: kernels, shared prefixes and pruned rows of frozen towers."""
