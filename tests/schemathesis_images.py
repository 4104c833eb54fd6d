"""Images for schemathesis, which knows none: its random bytes are rightly refused.

SCHEMATHESIS_HOOKS=tests.schemathesis_images schemathesis run http://127.0.0.1:8000/openapi.json
"""

from __future__ import annotations

import io

import schemathesis
from hypothesis import strategies as st
from PIL import Image


@st.composite
def image(draw: st.DrawFn, kind: str) -> bytes:
    """An image file of few pixels."""
    file = io.BytesIO()
    size = draw(st.tuples(*[st.integers(1, 40)] * 2))
    Image.new(draw(st.sampled_from(["RGB", "L"])), size).save(file, kind)
    return file.getvalue()


for kind in ("jpeg", "png", "webp", "gif"):
    schemathesis.openapi.media_type(f"image/{kind}", image(kind))
