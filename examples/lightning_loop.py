"""A method of apd as a LightningModule, so that Lightning's loggers, callbacks and strategies can be used."""

from __future__ import annotations

import lightning
import torch
from torch.utils.data import DataLoader, TensorDataset

import apd
from apd.attacks.threat import ThreatModel
from apd.data.batch import Batch
from apd.methods import find_method
from apd.training.step import TrainStep


class RobustPrompts(lightning.LightningModule):
    """Learns prompts; the CLIP model in it is frozen."""

    def __init__(self, clip: apd.DualEncoder, data: apd.Dataset, eps: float, lr: float = 0.003) -> None:
        super().__init__()
        method_class = find_method("apd")
        zero_shot = apd.PromptedCLIP(clip, None, data.class_names, data.templates)
        self.step = TrainStep(method_class(method_class.Settings(teacher="frozen", balance=0.5), zero_shot))
        self.threat, self.lr = ThreatModel(eps), lr

    def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
        x, labels = batch
        terms, _ = self.step(Batch.of(x.float() / 255, labels), self.threat)
        self.log_dict({name: term.detach() for name, term in terms.items()})
        return torch.stack(list(terms.values())).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW([p for p in self.step.parameters() if p.requires_grad], lr=self.lr)


def train(clip: apd.DualEncoder, data: apd.Dataset, eps: float, epochs: int, lr: float = 0.003) -> apd.PromptedCLIP:
    images = data.train.decode(clip.info.preprocessing)
    loader = DataLoader(TensorDataset(images.images, images.labels), batch_size=16, shuffle=True)
    module = RobustPrompts(clip, data, eps, lr)
    trainer = lightning.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False, enable_model_summary=False
    )
    trainer.fit(module, loader)
    return module.step.method.student.requires_grad_(False)


if __name__ == "__main__":
    lightning.seed_everything(0)
    digits = apd.load_data("digits", shots=4)
    classifier = train(apd.load_clip("glyphs"), digits, eps=4 / 255, epochs=5)
    print(apd.evaluate(classifier, digits, attacks="pgd-10", eps="4/255", limit=100))
