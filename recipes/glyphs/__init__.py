"""Recipe of the embedded CLIP: glyph pictures rendered by the project itself, their captions, and the pre-training."""
