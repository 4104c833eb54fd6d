"""Attacks of other libraries on a classifier: it is a torch module from pixels in [0,1] to logits, so they need no adapter."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import apd
from apd.attacks import PGD, Objective, cross_entropy, sample_seeds
from apd.attacks.threat import ThreatModel


def foolbox_pgd(model: nn.Module, x: Tensor, labels: Tensor, eps: float) -> Tensor:
    """Images that foolbox's PGD found (pip install foolbox)."""
    import foolbox

    found = foolbox.PyTorchModel(model, bounds=(0, 1), device=x.device)
    _, clipped, _ = foolbox.attacks.LinfPGD(steps=10)(found, x, labels, epsilons=eps)
    return clipped


def torchattacks_pgd(model: nn.Module, x: Tensor, labels: Tensor, eps: float) -> Tensor:
    """Images that torchattacks' PGD found (pip install torchattacks)."""
    import torchattacks

    return torchattacks.PGD(model, eps=eps, alpha=eps / 4, steps=10)(x, labels)


def own_pgd(model: nn.Module, x: Tensor, labels: Tensor, eps: float) -> Tensor:
    """Images that apd's PGD found, to compare."""
    attack = PGD(steps=10, step_size=0.25)
    seeds = sample_seeds([str(i) for i in range(len(x))], 0)
    return attack(Objective(model, cross_entropy, labels), x, ThreatModel(eps), seeds)


ATTACKS = {"apd": own_pgd, "foolbox": foolbox_pgd, "torchattacks": torchattacks_pgd}


def accuracy(model: nn.Module, x: Tensor, labels: Tensor) -> float:
    with torch.no_grad():
        return 100 * float((model(x).argmax(dim=1) == labels).float().mean())


def images_of(classifier: apd.PromptedCLIP, data: apd.Dataset, limit: int) -> tuple[Tensor, Tensor]:
    """Test images (N,3,S,S) in [0,1] as the classifier wants them, and their labels."""
    decoded = data.test.sample(limit).decode(classifier.encoder.info.preprocessing)
    return decoded.pixels(), decoded.labels


if __name__ == "__main__":
    digits = apd.load_data("digits", shots=4)
    run = apd.train("glyphs", digits, eps="4/255", epochs=5, quiet=True)
    robust = apd.load_run(run.path)
    x, labels = images_of(robust, digits, limit=100)
    # Class features fixed, gradients to pixels only; parameters and pixels outside of [0,1] are left to the library.
    victim, zero_shot = robust.frozen(), robust.zero_shot().frozen()
    print(f"clean: {accuracy(victim, x, labels):.0f} %")
    for name, attack in ATTACKS.items():
        try:
            print(f"PGD-10 of {name}: {accuracy(victim, attack(victim, x, labels, 4 / 255), labels):.0f} %")
        except ModuleNotFoundError as error:
            print(f"PGD-10 of {name}: skipped, {error}")
    transferred = own_pgd(zero_shot, x, labels, 4 / 255)
    print(f"images made on zero-shot CLIP: {accuracy(victim, transferred, labels):.0f} %")
