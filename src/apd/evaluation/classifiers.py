"""Classifiers that are not runs: a module that other code makes, prompts in a checkpoint of other code, zero-shot CLIP."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from apd.data import Dataset
from apd.errors import ApdError, InputError
from apd.models import load_clip
from apd.models.classifier import PromptedCLIP
from apd.runs.imported import read_classifier
from apd.runs.learners import FORMS
from apd.util.plugins import Registry
from apd.util.text import one_line


def _problem(found: object) -> str | None:
    return None if callable(found) else "is not a function or class that makes a torch.nn.Module"


CLASSIFIERS: Registry[Callable[..., Any]] = Registry("classifier", "apd.classifiers", {}, _problem)
"""Makers of classifiers of other packages, or as ``package.module:factory``."""


def load_classifier(
    source: str, data: Dataset, *, model: str | None = None, device: str | torch.device = "cpu"
) -> nn.Module:
    """Make the classifier that a name stands for, for the classes of ``data``.

    Args:
        source: ``package.module:factory``, a function or class that makes a module from pixels (B,3,S,S) in [0,1] to logits
            (B,C) and is given the class names if it has a parameter ``class_names``; or ``FORM:FILE``, a checkpoint of a
            prompt learner, where FORM is coop, maple or fap.
        data: its class names, in the order of the logits.
        model: the CLIP model that the prompts of a checkpoint were learned on.
        device: where to put it.

    Raises:
        InputError: code that cannot be imported or does not make a module, a file that is not such a checkpoint, or
            ``model`` missing for one.
    """
    form, _, file = source.partition(":")
    if form in FORMS and (Path(file).exists() or "/" in file or find_spec(form) is None):
        if model is None:
            raise InputError(f"{source}: prompts need the CLIP model that they were learned on; give it with --model.")
        return read_classifier(Path(file), form, load_clip(model, device=device), data.class_names)
    made = _made(source, CLASSIFIERS.find(source), data.class_names)
    return made.to(device)


def zero_shot(model: str, data: Dataset, device: str | torch.device = "cpu") -> PromptedCLIP:
    """Load a CLIP model as a classifier for the classes of ``data``, by their hand-written templates."""
    return PromptedCLIP(load_clip(model, device=device), None, data.class_names, data.templates)


def _made(source: str, factory: Callable[..., Any], class_names: tuple[str, ...]) -> nn.Module:
    """Call the factory, and check what it makes."""
    if isinstance(factory, nn.Module):  # a module is callable, too: on pixels
        return factory
    arguments = {"class_names": list(class_names)} if _takes_names(factory) else {}
    try:
        made = factory(**arguments)
    except ApdError:
        raise
    except Exception as error:  # whatever other code raises
        given = "with class_names" if arguments else "without arguments (it has no parameter class_names)"
        raise InputError(
            f"The classifier {source!r} cannot be made ({type(error).__name__}: {one_line(error, 300)}); it was called {given}."
        ) from error
    if not isinstance(made, nn.Module):
        raise InputError(
            f"The classifier {source!r} makes a {type(made).__name__}, not a torch.nn.Module from pixels (B,3,S,S) in [0,1] to "
            "logits (B,C)."
        )
    return made


def _takes_names(factory: Callable[..., Any]) -> bool:
    try:
        return "class_names" in inspect.signature(factory).parameters
    except (TypeError, ValueError):  # parts of C libraries do not tell
        return False
