"""The demo: what an attack does to zero-shot CLIP, to the control and to APD, in a table and a picture."""

from apd.demo.comparison import DEMO, METHODS, QUICK, DemoSettings, run_demo

__all__ = ["DEMO", "METHODS", "QUICK", "DemoSettings", "run_demo"]
