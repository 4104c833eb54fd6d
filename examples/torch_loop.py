"""A method of apd in a training loop of your own: batches, optimiser and schedule are yours, attack and loss are apd's."""

from __future__ import annotations

import torch
from torch.utils.data import DataLoader, TensorDataset

import apd
from apd.attacks.threat import ThreatModel
from apd.data.batch import Batch
from apd.methods import find_method
from apd.training.step import TrainStep


def train(clip: apd.DualEncoder, data: apd.Dataset, eps: float, epochs: int, lr: float = 0.003) -> apd.PromptedCLIP:
    """Learn robust prompts from a frozen teacher, the hand-written prompt.

    Methods that prepare something before the first step, such as a tuned teacher, need `Method.prepare`.
    """
    method_class = find_method("apd")
    zero_shot = apd.PromptedCLIP(clip, None, data.class_names, data.templates)
    method = method_class(method_class.Settings(teacher="frozen", balance=0.5), zero_shot)
    step, threat = TrainStep(method), ThreatModel(eps)

    images = data.train.decode(clip.info.preprocessing)  # uint8, in the size that the CLIP model takes
    loader = DataLoader(TensorDataset(images.images, images.labels), batch_size=16, shuffle=True)
    optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)

    for epoch in range(epochs):
        for x, labels in loader:
            terms, _ = step(Batch.of(x.float() / 255, labels), threat)  # class features, attack, loss
            optimizer.zero_grad()
            sum(terms.values()).backward()
            optimizer.step()
        schedule.step()
        print(f"epoch {epoch + 1}: " + ", ".join(f"{name} {float(term.detach()):.3f}" for name, term in terms.items()))
    return method.student.requires_grad_(False)


if __name__ == "__main__":
    torch.manual_seed(0)
    digits = apd.load_data("digits", shots=4)
    classifier = train(apd.load_clip("glyphs"), digits, eps=4 / 255, epochs=5)
    print(apd.evaluate(classifier, digits, attacks="pgd-10", eps="4/255", limit=100))
