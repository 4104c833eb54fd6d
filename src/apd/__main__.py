"""`python -m apd`, also for `accelerate launch -m apd train …`."""

from apd.cli import main

main()
