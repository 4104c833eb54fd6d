"""`evaluate_run`: judge a run folder by its own data, classes and threat model, and write the result into it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Unpack

from apd.data import Dataset
from apd.evaluation.inputs import images_for, is_own, part_of, serving
from apd.evaluation.measure import evaluate, parse_settings
from apd.evaluation.options import EvaluationOptions
from apd.evaluation.result import Result
from apd.evaluation.settings import TEACHER
from apd.evaluation.stored import save
from apd.evaluation.surroundings import ZERO_SHOT
from apd.runs.config import RunConfig
from apd.runs.folder import Run
from apd.runs.load import load_run
from apd.util.device import pick_device
from apd.util.files import AnyPath
from apd.util.messages import get_logger, speaking
from apd.util.text import printable
from apd.util.trust import trust

log = get_logger("apd.evaluation")


def evaluate_run(
    path: AnyPath,
    *,
    data: str | Path | Dataset | None = None,
    model: str | None = None,
    device: str = "auto",
    save_images: bool = False,
    **settings: Unpack[EvaluationOptions],
) -> Result:
    """Evaluate a finished run as `apd evaluate RUN` does, and keep the result in the run and its model card.

    What is not given is the run's own: its data, its classes, its eps and norm, and whether unreadable images are left
    out. Outcomes of single images are kept in ``RUN/results``: another call computes only what is missing.

    Args:
        path: the run folder.
        data: other data to evaluate on, as `apd.load_data` takes it, or a data set; all classes unless ``classes`` is given.
        model: where the run's CLIP model is now, if it has moved since.
        device: auto, cpu, cuda, cuda:1 or mps.
        save_images: keep the adversarial images in ``RUN/images``, with an index (see `apd.evaluation.images`).
        settings: any of `EvaluationSettings`, such as ``attacks="autoattack"``, ``limit=100`` or ``eps="4/255"``.

    Returns:
        The result, also written to ``RUN/results`` and ``RUN/README.md``.

    Raises:
        InputError: an unknown setting, not a finished run, another CLIP model than the run's, images that cannot be read,
            another process that is writing to the run.

    Example:
        >>> import apd
        >>> apd.evaluate_run("runs/digits", attacks="pgd-20", limit=100).worst.interval  # doctest: +SKIP
    """
    trust(data, model)
    run = Run.open(path)
    config = run.config
    with speaking(bool(settings.get("quiet", False))):
        images, which = images_for(run, data, settings.get("split", "test"))
        given = {**_own_settings(config), "classes": which, **settings}
        chosen = parse_settings(given, "evaluate_run", ("data", "model", "device", "save_images"))
        if TEACHER in chosen.attacks:
            given["attacks"] = [_taught_by(config) if name == TEACHER else name for name in chosen.attacks]
        wanted, own = part_of(images, chosen.classes), is_own(run, images)
        with run.held():
            log.info(f"{wanted.summary()}; CLIP model {printable(model or config.model)}")
            classifier = serving(wanted, load_run(path, device=pick_device(device), model=model))
            kept = run.images if save_images else None
            result = evaluate(classifier, images, store=run.results, save_images=kept, **given)
            result = result.model_copy(update={"own_data": own})
            save(run, result)
    return result


def _own_settings(config: RunConfig) -> dict[str, Any]:
    """The run's own settings of an evaluation."""
    return {"eps": config.train.eps, "norm": config.train.norm, "skip_bad_images": config.data.skip_bad_images}


def _taught_by(config: RunConfig) -> str:
    """Return the transfer attack from a run's teacher: its CLIP model with hand-written prompts, or the run that taught.

    Prompts that a teacher was tuned with are not part of a run.
    """
    teacher = getattr(config.method.settings, "teacher_model", None) or ZERO_SHOT
    log.info(f"{TEACHER} is transfer:{printable(teacher)}")
    return f"transfer:{teacher}"
