"""A robust CLIP, as a teacher or as a start: its image tower fine-tuned on adversarial images of labelled classes.

::

    python -m recipes.robust_clip --model openai/clip-vit-base-patch32 --data photos --output runs/robust-clip

TeCoA (Mao 2023, arXiv 2212.07016), with the outer loss of FARE (Schlarmann 2024, arXiv 2402.12336) added where asked::

    inner   x' = argmax_{|x'-x|_inf <= eps} CE(z(x'), y)
    outer   CE(z(x'), y) + fare * || f(x') - f_0(x) ||^2

``z`` are logits over the class prompts, whose text features stay as they are; ``f`` are image features, ``f_0`` those of the
CLIP as it was, neither of unit length. The result is a folder in the Hugging Face format like any other CLIP.
"""

from __future__ import annotations

import argparse
import copy
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.utils.hub import cached_file

from apd.attacks import Objective, cross_entropy
from apd.attacks.objectives import squared_distance
from apd.data import Dataset
from apd.errors import InputError
from apd.models import load_clip
from apd.models.classifier import PromptedCLIP
from apd.models.huggingface import HuggingFaceEncoder
from apd.runs.config import RunConfig, validate
from apd.settings.train import TrainSettings
from apd.training.batches import Batch, Batches, decode
from apd.training.optim import build_optimizer, load_optimizer_tensors, optimizer_tensors
from apd.training.schedule import learning_rate
from apd.training.step import training_attack
from apd.util.device import pick_device
from apd.util.files import check_writable, writing
from apd.util.messages import get_logger, speaking
from apd.util.progress import Count, Progress
from apd.util.tensors import read_tensors, write_tensors

log = get_logger("apd.recipes")

TOWER = ("vision_model.", "visual_projection.")


def image_tower(encoder: HuggingFaceEncoder) -> dict[str, nn.Parameter]:
    """The weights between pixels and image features, by name."""
    return {name: weight for name, weight in encoder.model.named_parameters() if name.startswith(TOWER)}


class FineTuning:
    """Moves the image tower of ``encoder``, in place; every draw comes from (seed, step, image).

    Args:
        encoder: whose weights are frozen so far.
        data: labelled images; the training split is used.
        settings: eps, attack, optimizer, epochs, warm-up, batch size, augmentation and seed are.
        fare: weight of the distance to the clean features of the original CLIP model.
    """

    def __init__(self, encoder: HuggingFaceEncoder, data: Dataset, settings: TrainSettings, fare: float) -> None:
        self.settings, self.fare = settings, fare
        self.original = copy.deepcopy(encoder) if fare else None
        self.batches = Batches(decode(encoder, data, False, True), settings)
        self.steps = len(self.batches) * settings.epochs
        self.attack = training_attack(settings.attack)
        self.model = PromptedCLIP(encoder, None, data.class_names, data.templates).bind_detached()
        self.tower = image_tower(encoder)
        for weight in self.tower.values():
            weight.requires_grad_()
        self.optimizer = build_optimizer(settings.optimizer, list(self.tower.values()))

    def loss(self, batch: Batch) -> Tensor:
        """The outer loss (scalar) on adversarial images of the tower as it is now."""
        objective = Objective(self.model.logits, cross_entropy, batch.labels)
        x_adv = self.attack(objective, batch.x, self.settings.threat, batch.seeds)
        features = self.model.embed(x_adv)
        loss = F.cross_entropy(self.model.logits_from_features(F.normalize(features, dim=-1)), batch.labels)
        if self.original is not None:
            with torch.no_grad():
                target = self.original.encode_image(batch.x)
            loss = loss + self.fare * squared_distance(features, target).mean()
        return loss

    def step(self, step: int) -> float:
        """One optimiser step; returns the loss."""
        s = self.settings
        self.optimizer.zero_grad()
        loss = self.loss(self.batches.draw(step, step))
        loss.backward()
        if s.optimizer.clip is not None:
            nn.utils.clip_grad_norm_(self.tower.values(), s.optimizer.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(step, self.steps, round(s.warmup_epochs * len(self.batches)), s.optimizer.lr)
        self.optimizer.step()
        return loss.item()

    def run(self, checkpoint: Path, about: str, *, show: bool = True, stop: int | None = None) -> None:
        """All steps that are left, or those before ``stop``; ends as a run that was never stopped.

        Args:
            checkpoint: file that is written now and then, and gone on from where it is there.
            about: what the weights depend on; a checkpoint of something else is refused.
            show: progress on standard error.
            stop: leave, with a checkpoint, after so many steps.
        """
        start, end = self._restore(checkpoint, about), min(stop or self.steps, self.steps)
        with (
            speaking(quiet=not show),
            Progress("fine-tuning", Count(self.steps, "steps", start), keep=True) as progress,
        ):
            for step in range(start, end):
                loss, done = self.step(step), step + 1
                progress.count.advance()
                progress.status = f"loss {loss:.3f}"
                if done % len(self.batches) == 0:
                    log.info(f"epoch {done // len(self.batches)} of {self.settings.epochs}: loss {loss:.3f}")
                if done % self.settings.checkpoint_every == 0 or done == end:
                    tensors = {**self.tower, **optimizer_tensors(self.optimizer)}
                    write_tensors(checkpoint, tensors, {"about": about, "done": str(done)})

    def _restore(self, checkpoint: Path, about: str) -> int:
        """Load a checkpoint; returns the steps done."""
        if not checkpoint.exists():
            return 0
        way_out = "remove it to start again"
        tensors, known = read_tensors(checkpoint, way_out)
        if known.get("about") != about:
            raise InputError(f"{checkpoint} is of another model, data or settings; {way_out}.")
        with torch.no_grad():
            for name, weight in self.tower.items():
                weight.copy_(tensors[name])
        load_optimizer_tensors(self.optimizer, tensors)
        return int(known["done"])


def save(encoder: HuggingFaceEncoder, folder: Path) -> None:
    """Write model, tokenizer and image processing as one folder, whole or not at all.

    Raises:
        InputError: the place cannot be written, or is taken.
    """
    source = encoder.model.config.name_or_path
    with writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
            model = Path(temporary) / "model"
            encoder.model.save_pretrained(model)
            encoder.tokenizer.save_pretrained(model)
            for name in ("preprocessor_config.json", "processor_config.json"):
                found = cached_file(source, name, _raise_exceptions_for_missing_entries=False)
                if found:
                    shutil.copyfile(found, model / name)
            model.rename(folder)


def make(config: RunConfig, fare: float, output: Path) -> None:
    """Load, fine-tune and save.

    Raises:
        InputError: a model or data that cannot be used, an output that is there already.
    """
    if output.exists():
        raise InputError(f"{output} is there already; remove it or choose another --output.")
    check_writable(output.parent)
    encoder = load_clip(config.model, device=pick_device(config.train.device))
    if not isinstance(encoder, HuggingFaceEncoder):
        raise InputError(f"{config.model} is no CLIP in the Hugging Face format.")
    data = config.data.load(config.train.seed)
    about = {"weights": encoder.info.weights_sha256, "images": data.train.ids, "fare": fare}
    about |= {"train": config.train.model_dump(mode="json", exclude={"device", "checkpoint_every"})}
    checkpoint = output.with_name(f"{output.name}.checkpoint.safetensors")
    FineTuning(encoder, data, config.train, fare).run(checkpoint, json.dumps(about))
    save(encoder, output)
    checkpoint.unlink()


def parser() -> argparse.ArgumentParser:
    """The command line; its defaults are the recipe."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--model", required=True, help="hub id or folder of a CLIP model")
    options.add_argument("--data", required=True, help="labelled images, as apd train takes them")
    options.add_argument("--output", type=Path, required=True, help="folder of the new CLIP")
    options.add_argument("--shots", default="all", help="training images per class, or all")
    options.add_argument("--eps", default="1/255", help="training budget in [0,1] pixel units")
    options.add_argument("--attack-steps", type=int, default=2, help="steps of PGD")
    options.add_argument("--step-size", type=float, default=1.0, help="step of PGD as a fraction of eps")
    options.add_argument("--fare", type=float, default=0.0, help="weight of the distance to the original features")
    options.add_argument("--epochs", type=int, default=10)
    options.add_argument("--batch", type=int, default=64, help="images a step")
    options.add_argument("--lr", type=float, default=1e-5, help="peak learning rate of AdamW")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    return options


def config_of(arguments: argparse.Namespace) -> RunConfig:
    """The command line as settings of a run.

    Raises:
        InputError: a value out of range.
    """
    train: dict[str, Any] = {
        "eps": arguments.eps,
        "attack": {"steps": arguments.attack_steps, "step_size": arguments.step_size},
        "optimizer": {"name": "adamw", "lr": arguments.lr, "weight_decay": 1e-4},
        "epochs": arguments.epochs,
        "batch_size": arguments.batch,
        "seed": arguments.seed,
        "device": arguments.device,
    }
    shots = int(arguments.shots) if arguments.shots.isdigit() else arguments.shots
    return validate({"model": arguments.model, "data": {"source": arguments.data, "shots": shots}, "train": train})


def main() -> None:
    """``python -m recipes.robust_clip``."""
    options = parser()
    arguments = options.parse_args()
    try:
        make(config_of(arguments), arguments.fare, arguments.output)
    except InputError as error:
        options.exit(2, f"{error}\n")
    print(f"Next: apd evaluate --model {arguments.output} --data {arguments.data} --eps {arguments.eps}")


if __name__ == "__main__":
    main()
