"""A plugin of pytest: torchvision from the package index beside a torch without CUDA.

Its compiled operators need CUDA's libraries, and without them its import fails. open_clip uses none of them; declaring the
two that torchvision registers in any case makes the rest of it work. ``pytest -p tests.torchvision_cpu``
"""

from __future__ import annotations

import torch

_LIBRARY = torch.library.Library("torchvision", "FRAGMENT")
try:
    import torchvision  # noqa: F401
except RuntimeError:
    for _name in ("nms", "qnms"):
        _LIBRARY.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
