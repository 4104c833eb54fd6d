"""What a seed may be, wherever one is set."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

LARGEST_SEED = 2**63 - 1
"""The largest seed that every generator takes: a signed number of 64 bits."""

Seed = Annotated[int, Field(ge=0, le=LARGEST_SEED)]
