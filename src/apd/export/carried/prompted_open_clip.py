"""Load the CLIP model of this folder with its learned visual tokens; needs torch, safetensors and open_clip.

import sys

sys.path.insert(0, "FOLDER")
from prompted_open_clip import load

model, preprocess, class_features, class_names = load()
features = model.encode_image(preprocess(image)[None], normalize=True)
logits = model.logit_scale.exp() * features @ class_features.T
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

_TURNS = dict(enumerate((None, *(Image.Transpose(number) for number in (0, 3, 1, 5, 4, 6, 2))), start=1))
"""What makes an image upright, by its orientation in EXIF."""


class VisualTokens(nn.ParameterList):
    """Learned tokens (n, width) per block; they join the sequence after the patches, and each block replaces them by its own."""

    def join(self, norm: nn.Module, inputs: tuple[Any, ...]) -> Tensor:
        """Add the first block's tokens to the rows (B, L, width) that enter the norm before the blocks."""
        return torch.cat([inputs[0], self[0].expand(len(inputs[0]), -1, -1)], dim=1)

    def replace(self, depth: int, block: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        """Replace the last n of the rows that enter a block by the block's tokens."""
        rows, tokens = inputs[0], self[depth]
        own = rows[:, : rows.shape[1] - len(tokens)]
        return torch.cat([own, tokens.expand(len(rows), -1, -1)], dim=1), *inputs[1:]


def to_rgb(image: Image.Image) -> Image.Image:
    """Make an image RGB as in training: upright by its EXIF, transparency on white, 16-bit grey scaled to 8 bits.

    Raises:
        ValueError: floats, or integers beyond 16 bits, whose range is unknown.
    """
    image.load()  # a TIFF is turned by this, and must not be turned again
    try:
        turn = _TURNS.get(image.getexif().get(0x0112, 1))
    except Exception:  # EXIF that cannot be read says nothing
        turn = None
    image = image if turn is None else image.transpose(turn)
    if image.mode.startswith(("I", "F")):
        values = np.asarray(image)
        if image.mode == "F" or values.min() < 0 or values.max() > 65535:
            raise ValueError("Its pixels are floats, or integers beyond 16 bits; save it with 8 or 16 bits.")
        image = Image.fromarray(((values.astype(np.uint32) + 128) // 257).astype(np.uint8))
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA")).convert("RGB")


def centre(size: int, image: Any) -> Any:
    """Crop the centre of a PIL image."""
    left, top = ((side - size) // 2 for side in image.size)
    return image.crop((left, top, left + size, top + size))


def load(folder: str | Path = Path(__file__).parent) -> tuple[Any, Any, Tensor, list[str]]:
    """Load the model, how it wants its images, the class features (C, D) of unit length, and the names of the classes."""
    import open_clip

    folder = Path(folder)
    about = json.loads((folder / "classifier.json").read_text(encoding="utf-8"))
    state = load_file(folder / "open_clip_model.safetensors")
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}", load_weights=False)
    transformer = model.visual.transformer
    if not getattr(transformer, "batch_first", False):
        raise ValueError("Install a newer open_clip_torch, whose blocks take rows as (batch, length, width).")
    depth = sum(name.startswith("visual.prompts.") for name in state)
    model.visual.prompts = tokens = VisualTokens(state[f"visual.prompts.{i}"] for i in range(depth))
    model.visual.ln_pre.register_forward_pre_hook(tokens.join)
    for i in range(1, depth):
        transformer.resblocks[i].register_forward_pre_hook(partial(tokens.replace, i))
    model.load_state_dict(state, strict=True)
    how, resize = about["preprocessing"], preprocess.transforms[0]
    if how["mode"] == "crop":  # open_clip's own resizes to the size of the crop
        preprocess.transforms[0] = type(resize)(how["resize"], interpolation=resize.interpolation)
        preprocess.transforms[1] = partial(centre, how["size"])  # torchvision's rounds the place of the crop
    preprocess.transforms.insert(0, to_rgb)  # open_clip's own drops EXIF and transparency
    features = load_file(folder / "class_features.safetensors")["class_features"]
    return model.eval(), preprocess, features, about["class_names"]
