"""The run folder: what a training leaves behind, and how it is read again."""
