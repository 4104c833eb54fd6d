"""`python -m apd`, also for `accelerate launch -m apd train …`."""

from apd.cli import main

# Worker processes import this module again under another name.
if __name__ == "__main__":
    main()
