"""One training step as one module: class features once, attack, loss; gradients synchronise when it is wrapped.

Image tower passes per optimiser step, for K attack steps (`train.attack.steps`)::

    kind                     student          fixed teacher, where loss or attack ask for it
                             fwd      bwd     fwd
    pgd                      K+1      K+1     1         (the default K = 2: 3 and 3)
    fgsm-rs, n-fgsm          2        2       1
    free                     1        1       1/m       (m = train.attack.replays)
    carried                  1        1       1
    noise                    1+s      1+s     1         (s = its option steps, 0 by default)
    clean methods            1        1       1

    train.eps_per_image      +1       +1      -
    train.attack.loss=kl     +1       -                 (unless the method needs the clean pass anyway: then it is shared)
    optimizer.sam or .awp    +1       +1      -         (the attack is not repeated)
    train.attack.stop_margin at most that of pgd, less the samples that have left

A clean student pass (FAP, TRADES, ``clean_ce``, ``clean_kl``) adds one forward and one backward pass, an online teacher
one forward and one backward pass, a teacher on x' (a second one too) one forward pass, whatever the kind.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from apd.attacks.base import Attack, like
from apd.attacks.objectives import LOSSES, Objective, cross_entropy, kl_to_probabilities
from apd.attacks.pgd import PGD
from apd.attacks.settings import AttackSettings
from apd.attacks.threat import ThreatModel
from apd.data.batch import Batch
from apd.errors import ApdError, InputError
from apd.methods.base import Method
from apd.methods.step import Step
from apd.settings.train import TrainSettings
from apd.training.budget import per_image


def training_attack(settings: AttackSettings) -> Attack:
    """Build the attack that ``settings`` describe; PGD where images move with the prompts and no attack is run."""
    kind = PGD if settings.attack_class.moves_with_prompts else settings.attack_class
    return kind.from_settings(settings)


class TrainStep(nn.Module):
    """From a batch to the method's loss terms.

    Class features are computed once, with their graph; the attack works on their detached values, and all that the
    loss needs again (clean features, the teacher's answers) is computed once per step.

    Args:
        method: the method whose student is trained.
        settings: the section ``train``.
        attack: another attack than the one that ``settings`` describe.
    """

    def __init__(self, method: Method, settings: TrainSettings | None = None, attack: Attack | None = None) -> None:
        super().__init__()
        self.method, self.settings = method, settings or TrainSettings()
        self.attack = attack or training_attack(self.settings.attack)

    def forward(
        self, batch: Batch, threat: ThreatModel, x_adv: Tensor | None = None
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Return named scalar terms, whose sum is what to minimise, and the images (B,3,S,S) they were taken on, detached.

        Args:
            batch: images, labels and seeds.
            threat: the budget of this step.
            x_adv: adversarial images (B,3,S,S) from elsewhere; no attack is run. If they ask for a gradient, the
                terms' backward pass gives it: of the outer loss, not of the attack's objective.
        """
        bf16 = self.settings.precision == "bf16"
        with torch.autocast(batch.x.device.type, dtype=torch.bfloat16, enabled=bf16):
            step = Step(batch, self.method.student.bind(), self.settings.label_smoothing)
            # Where eps is 0, while it has not begun to grow, there is nothing to search; noise is there all the same.
            searched = threat.eps > 0 or not getattr(self.attack, "needs_budget", True)
            if x_adv is None and self.method.adversarial and searched:
                objective = self._objective(step)
                if self.settings.eps_per_image:
                    threat = per_image(objective, batch.x, threat)
                made = self.attack(objective, batch.x.clone(), threat, batch.seeds)
                x_adv = like(batch.x, made, self.settings.attack.kind)
            images = batch.x if x_adv is None else x_adv
            return _checked(self.method, self.method.loss(step, images)), images.detach()

    def _objective(self, step: Step) -> Objective:
        """Return the method's inner objective, or the one that ``train.attack.loss`` puts in its place."""
        own, name = self.method.inner(step, step.student.detach()), self.settings.attack.loss
        if not isinstance(own, Objective):
            wanted = f"inner() of {type(self.method).__name__} must return an apd.attacks.Objective"
            raise ApdError(f"{wanted}, what the attack maximises, got {type(own).__name__}.")
        if name == "method":
            return own
        if own.loss not in (cross_entropy, kl_to_probabilities):
            raise InputError(
                f"train.attack.loss={name} can replace a cross-entropy only, but this method's inner objective is another; "
                "set train.attack.loss=method."
            )
        target = step.clean_logits().detach() if name == "kl" else _labels(step, own)
        return Objective(own.forward, LOSSES.find(name), target)


def _labels(step: Step, own: Objective) -> Tensor:
    """Return the labels (B,); of images without one, those that the method's own objective is about."""
    if step.labelled is None:
        return step.labels
    known = own.target if own.loss is cross_entropy else own.target.argmax(dim=-1)
    return torch.where(step.labelled, step.labels, known)


def _checked(method: Method, terms: object) -> dict[str, Tensor]:
    """Return the terms if they are named scalars with a gradient.

    Raises:
        ApdError: naming the method, which may be another package's.
    """
    wanted = f"loss() of {type(method).__name__} must return named terms (a dict of scalars)"
    if not isinstance(terms, dict) or not terms:
        raise ApdError(f"{wanted}, got {'an empty one' if terms == {} else type(terms).__name__}.")
    for name, term in terms.items():
        if not isinstance(term, Tensor):
            raise ApdError(f"{wanted}, got {type(term).__name__} for {name!r}.")
        if term.ndim:
            raise ApdError(f"{wanted}, got the shape {tuple(term.shape)} for {name!r}; take its mean over the samples.")
    if torch.is_grad_enabled() and not any(term.requires_grad for term in terms.values()):
        raise ApdError(
            f"{wanted} that depend on step.student, but no gradient of {', '.join(terms)} reaches its prompts."
        )
    return terms
