"""The model under evaluation: frozen, in float32, told apart from every other."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain

import torch
from torch import Tensor, nn

from apd.attacks.objectives import finite
from apd.errors import InputError
from apd.models.classifier import FrozenClassifier, PromptedCLIP
from apd.models.fingerprint import clips_within, told
from apd.models.parts import InParts, within
from apd.models.shown import structure
from apd.util.code import attributes_of, code_hash, is_own_code
from apd.util.memory import Room
from apd.util.tensors import sha256_of_weights


@contextmanager
def exact_float32(device: torch.device) -> Iterator[None]:
    """No autocast and no TF32, which would round float32 products to ten bits."""
    precision = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("highest")
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False), torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)


def _foreign_code(classifier: nn.Module) -> str:
    """Hashes of the classes from elsewhere, whose code may change while the weights stay; empty for our own and torch's."""
    known = {type(module) for module in classifier.modules()}
    foreign = [kind for kind in known if kind.__module__.partition(".")[0] not in ("apd", "torch", "transformers")]
    return "".join(sorted(code_hash(kind) for kind in foreign))


def _held(classifier: nn.Module) -> str:
    """What modules of own code, and wrappers of `apd.attacks`, hold besides weights; names with an underscore are not told."""
    usual, found = {*vars(nn.Module()), "info"}, []  # the info of an encoder, of which `Subject` takes what counts
    for name, module in classifier.named_modules():
        if is_own_code(type(module)) or type(module).__module__.startswith("apd.attacks."):
            own = {key: told(value) for key, value in vars(module).items() if key not in usual and key[0] != "_"}
            found += [f"{name} {own}"] if own else []
    return "".join(found)


def _unsaved(classifier: nn.Module) -> str:
    """Buffers that a state leaves out, such as draws of noise; those of `transformers` and this package follow from it."""
    found = []
    for name, module in classifier.named_modules():
        if type(module).__module__.partition(".")[0] not in ("apd", "transformers"):
            found += [
                f"{name}.{key} {told(module._buffers[key])}" for key in sorted(module._non_persistent_buffers_set)
            ]
    return "".join(found)


def _hooks(classifier: nn.Module) -> str:
    """Code of the hooks that change what the parts of a model are given or give."""
    found = []
    for name, module in classifier.named_modules():
        hooks = [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
        found += [f"{name} {told(hook)}" for hook in hooks]
    return "".join(found)


def _tensors(classifier: nn.Module) -> Iterator[Tensor]:
    """Weights and buffers, and those behind a `FrozenClassifier`, which has none of its own."""
    for part in (classifier, *(m.bound.encoder for m in classifier.modules() if isinstance(m, FrozenClassifier))):
        yield from chain(part.parameters(), part.buffers())


def own_answers(classifier: nn.Module) -> list[object]:
    """Return what makes a `PromptedCLIP` answer otherwise than its prompts do: a ``forward`` of a subclass, and hooks.

    Empty for one that does not, and for any other module.
    """
    if not isinstance(classifier, PromptedCLIP):
        return []
    own = [type(classifier).forward, vars(classifier).get("forward")]
    hooks = [*classifier._forward_pre_hooks.values(), *classifier._forward_hooks.values()]
    return [each for each in (*own, *hooks) if each not in (PromptedCLIP.forward, None)]


@dataclass(frozen=True)
class Subject:
    """A model from pixels (B,3,H,W) in [0,1] to logits (B,C), where it lives, and its fingerprint."""

    model: nn.Module
    device: torch.device
    fingerprint: str
    class_names: tuple[str, ...] = ()

    @classmethod
    def of(cls, classifier: nn.Module) -> Subject:
        """A classifier or any plain module.

        Raises:
            InputError: weights that are not float32.
        """
        tensors = list(_tensors(classifier))
        for tensor in tensors:
            if tensor.is_floating_point() and tensor.dtype != torch.float32:
                raise InputError(
                    f"Attacks are reported in float32, but the classifier has weights in {tensor.dtype}; load it "
                    "in float32. Small gradients vanish in half precision, and a model that has none looks robust."
                )
        device = tensors[0].device if tensors else torch.device("cpu")
        code, held = _foreign_code(classifier), f"{_held(classifier)}{_unsaved(classifier)}"
        digest = hashlib.sha256(f"{structure(classifier)} {sha256_of_weights(classifier)}{code}{held}".encode())
        if isinstance(classifier, PromptedCLIP):
            info = classifier.encoder.info
            about = (
                classifier.class_names,
                classifier.templates,
                info.preprocessing,
                info.logit_scale,
                info.logit_bias,
                info.tokenizer_sha256,
            )
            digest.update(repr(about).encode())
            head, _ = classifier.around_name()
            digest.update(head.encode())  # empty but for a few, whose outcomes are not those of the others
            own = own_answers(classifier)
            digest.update("".join(map(code_hash, own)).encode())
            with exact_float32(device):
                model = classifier if own else classifier.frozen()
                return cls(model, device, digest.hexdigest(), classifier.class_names)
        digest.update(f"{clips_within(classifier)}{_hooks(classifier)}{attributes_of(classifier, True)}".encode())
        return cls(classifier, device, digest.hexdigest())

    @contextmanager
    def within(self, room: Room) -> Iterator[Subject]:
        """This model, given no more images at a time than there is room for."""
        with within(room):
            # Our own keep to it by themselves, and stay what the health checks know.
            if room.most is None or isinstance(self.model, FrozenClassifier):
                yield self
            else:
                yield replace(self, model=InParts(self.model, room.most))

    def logits(self, x: Tensor) -> Tensor:
        """Logits (B, C) without gradients.

        Raises:
            ApdError: logits that are not finite, which an accuracy would hide.
        """
        with torch.no_grad():
            return finite(self.model(x))

    def check_outputs(self, x: Tensor, n_classes: int) -> None:
        """Check on a few images that there is one logit per class.

        Raises:
            InputError: outputs of another shape or type.
        """
        with self.fixed():
            z = self.model(x)
        if not isinstance(z, Tensor) or tuple(z.shape) != (len(x), n_classes):
            got = tuple(z.shape) if isinstance(z, Tensor) else type(z).__name__
            raise InputError(
                f"The classifier must give logits ({len(x)}, {n_classes}), one per class, but gives {got}."
            )
        if z.dtype != torch.float32:
            raise InputError(f"The classifier must give logits in float32, but gives {z.dtype}: return logits.float().")

    def predict(self, x: Tensor) -> Tensor:
        """Predicted labels (B,)."""
        return self.logits(x).argmax(dim=-1)

    @contextmanager
    def fixed(self) -> Iterator[None]:
        """In evaluation mode, no gradients to weights, true float32; everything as before afterwards."""
        modules = {module: module.training for module in self.model.modules()}
        parameters = {p: p.requires_grad for p in self.model.parameters()}
        try:
            self.model.eval().requires_grad_(False)
            with exact_float32(self.device):
                yield
        finally:
            for module, training in modules.items():
                module.training = training
            for parameter, needed in parameters.items():
                parameter.requires_grad_(needed)
