"""Suites of runs: data x method x shots x seed x protocol, on one machine or a cluster, and the tables they make."""

from apd.bench.plan import make_plan
from apd.bench.protocols import PROTOCOLS
from apd.bench.runner import Machine, bench, find_machine, write_tables
from apd.bench.suite import Suite, load_suite

__all__ = ["PROTOCOLS", "Machine", "Suite", "bench", "find_machine", "load_suite", "make_plan", "write_tables"]
