"""The explorer: a local web page that shows what an attack does to one image, under zero-shot CLIP and a run's classifier."""
