"""Pre-train the embedded CLIP from scratch on rendered glyphs: ``python -m recipes.glyphs.train --output FOLDER``.

No data set is read: pictures and captions are made here. ``recipes.glyphs.report`` measures the result.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from transformers import CLIPModel, PreTrainedTokenizerFast

from recipes.glyphs import captions
from recipes.glyphs.masks import build_pool
from recipes.glyphs.model import (
    CONTEXT,
    VOCABULARY,
    Average,
    build_model,
    contrast,
    encode_images,
    encode_texts,
    optimisers,
    preprocessor,
    save_half,
    trapezoid,
)
from recipes.glyphs.render import Batch, Renderer

MAX_SCALE = 100.0
"""Cap of the learned logit scale, as in CLIP."""


def batch_loss(
    model: CLIPModel, tokenizer: PreTrainedTokenizerFast, batch: Batch, detailed: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Contrastive loss of a batch and its accuracy over the identities.

    Two sets of captions: one plain caption of every identity, so that each picture has exactly one true caption,
    and a detailed caption (colours, slant, blur) of each of the first ``detailed`` pictures. A caption counts as
    true of every picture it describes, so that two pictures of a red 7 never push each other's captions away.
    """
    plain = [captions.plain_caption(glyph, generator) for glyph in captions.GLYPHS]
    rows = [captions.detailed_caption(row, generator) for row in batch.attributes[:detailed]]
    images = encode_images(model, batch.pixels)
    texts = encode_texts(model, tokenizer, plain + [text for text, _ in rows])
    logits = model.logit_scale.exp().clamp(max=MAX_SCALE) * images @ texts.T
    plain_logits, detailed_logits = logits[:, : len(plain)], logits[:, len(plain) :]
    identity = batch.attributes[:, 0]
    plain_truth = identity[:, None] == torch.arange(len(plain))
    detailed_truth = captions.truth(torch.stack([said for _, said in rows]), batch.attributes)
    loss = (
        contrast(plain_logits, plain_truth)
        + 0.25 * contrast(plain_logits.T, plain_truth.T)
        + 0.25 * contrast(detailed_logits, detailed_truth)
        + 0.25 * contrast(detailed_logits.T, detailed_truth.T)
    )
    accuracy = (plain_logits.argmax(-1) == identity).float().mean()
    return loss, accuracy


def train(arguments: argparse.Namespace, log: Path) -> tuple[CLIPModel, PreTrainedTokenizerFast]:
    """Run the recipe; a line of JSON every ``arguments.every`` steps goes to ``log`` and to standard output."""
    torch.manual_seed(arguments.seed)
    tokenizer = captions.train_tokenizer(VOCABULARY, CONTEXT)
    model = build_model(tokenizer)
    renderer = Renderer(build_pool(arguments.seed), arguments.seed)
    words = torch.Generator().manual_seed(arguments.seed)
    steppers = optimisers(model, arguments.muon_rate, arguments.adam_rate)
    factor = trapezoid(arguments.steps)
    schedules = [torch.optim.lr_scheduler.LambdaLR(stepper, factor) for stepper in steppers]
    average = Average(model.parameters(), arguments.decay)
    start, sums = time.monotonic(), torch.zeros(2)
    with log.open("w") as lines:
        for step in range(1, arguments.steps + 1):
            loss, accuracy = batch_loss(model, tokenizer, renderer.sample(arguments.batch), arguments.detailed, words)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimiser, schedule in zip(steppers, schedules, strict=True):
                optimiser.step()
                schedule.step()
            model.zero_grad()
            average.update()
            sums += torch.stack([loss.detach(), accuracy])
            if step % arguments.every == 0:
                mean_loss, mean_accuracy = (sums / arguments.every).tolist()
                sums.zero_()
                row = {"step": step, "loss": round(mean_loss, 4), "accuracy": round(mean_accuracy, 4)}
                row |= {"scale": round(model.logit_scale.exp().item(), 2), "seconds": round(time.monotonic() - start)}
                lines.write(json.dumps(row) + "\n")
                lines.flush()
                print(row, flush=True)
    average.copy_to_model()
    return model.eval(), tokenizer


def save(model: CLIPModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write the model (float16), the tokenizer and the image settings in Hugging Face's layout."""
    folder.mkdir(parents=True, exist_ok=True)
    save_half(model, folder)
    captions.save_tokenizer(tokenizer, folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor(), indent=2) + "\n")


def parser() -> argparse.ArgumentParser:
    """The command line; its defaults are the recipe."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--output", type=Path, required=True, help="folder of the model")
    options.add_argument("--log", type=Path, default=Path(__file__).with_name("log.jsonl"), help="training log")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--steps", type=int, default=1600)
    options.add_argument("--batch", type=int, default=256, help="pictures a step")
    options.add_argument("--detailed", type=int, default=48, help="detailed captions a step")
    options.add_argument("--muon-rate", type=float, default=4e-3)
    options.add_argument("--adam-rate", type=float, default=2e-3)
    options.add_argument("--decay", type=float, default=0.99, help="of the average of the weights")
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--every", type=int, default=50, help="steps between two lines of the log")
    return options


def main() -> None:
    arguments = parser().parse_args()
    torch.set_num_threads(arguments.threads)
    model, tokenizer = train(arguments, arguments.log)
    save(model, tokenizer, arguments.output)


if __name__ == "__main__":
    main()
