"""Code that exports carry with them: copied into the folder, so it imports nothing of this package."""

from __future__ import annotations

import shutil
from pathlib import Path

TRANSFORMERS, OPEN_CLIP = "modeling_prompted_clip.py", "prompted_open_clip.py"


def copy_to(folder: Path, name: str) -> None:
    """Copy one of the modules into an export."""
    shutil.copyfile(Path(__file__).with_name(name), folder / name)
