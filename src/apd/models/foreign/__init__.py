"""Models of other code bases, made into models of the `transformers` library: open_clip, OpenAI's files, fine-tuned towers."""
