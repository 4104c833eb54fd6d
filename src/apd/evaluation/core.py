"""One model on one set of samples, attack by attack; what is known already is not computed again."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from apd import attacks
from apd.data.dataset import Decoded
from apd.evaluation.progress import Pace, shown
from apd.evaluation.result import Accuracy, AttackAccuracy, Scores
from apd.evaluation.settings import EvaluationSettings
from apd.evaluation.store import Outcome, Record, Store
from apd.evaluation.subject import Subject
from apd.versions import versions

PRECISION = "float32"


@dataclass(frozen=True, eq=False)
class Samples:
    """Decoded images under evaluation, told apart by id, pixels and label."""

    decoded: Decoded

    def __len__(self) -> int:
        return len(self.decoded)

    @cached_property
    def keys(self) -> list[tuple[str, str, int]]:
        """Id, fingerprint of the pixels and label, one a sample."""
        images = self.decoded.images.cpu().contiguous()
        prints = (hashlib.blake2b(image.numpy().tobytes(), digest_size=8).hexdigest() for image in images)
        return list(zip(self.decoded.ids, prints, self.decoded.labels.tolist(), strict=True))

    def batch(self, index: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor, list[str]]:
        """Images in [0,1], labels and ids at ``index``."""
        where = torch.tensor(index)
        images = self.decoded.images[where].to(device)
        x = images.float() if images.is_floating_point() else images.float() / 255
        return x, self.decoded.labels[where].to(device), [self.decoded.ids[i] for i in index]


@dataclass(frozen=True)
class Evaluation:
    """One model on one set of samples: runs what the store does not know yet."""

    subject: Subject
    samples: Samples
    settings: EvaluationSettings
    store: Store
    n_classes: int
    title: str = ""

    def circumstances(self, attack: str) -> dict[str, str]:
        """What outcomes under this attack depend on, besides the sample."""
        known, threat = versions(), self.settings.threat
        about = {
            "attack": attack,
            "model": self.subject.fingerprint,
            "precision": PRECISION,
            "apd": known["apd"],
        }
        if self.settings.corruption is not None:  # the pixels tell it too; apart, each has its own seconds and flags
            about["corruption"] = self.settings.corruption
        if attack == "clean":
            return about
        limits = {"eps": repr(threat.eps), "norm": threat.norm, "seed": str(self.settings.seed)}
        return about | limits | {"pyautoattack": known["pyautoattack"]}

    def run(self) -> dict[str, Record]:
        """Outcomes under ``clean`` and each attack; misclassified samples are not attacked."""
        with self.subject.fixed():
            records = {"clean": self._run("clean", range(len(self.samples)))}
            right = [i for i, key in enumerate(self.samples.keys) if records["clean"].outcomes[key].predicted == key[2]]
            for name in self.settings.adversarial:
                records[name] = self._run(name, right)
        return records

    def _run(self, name: str, wanted: Sequence[int]) -> Record:
        record = self.store.record(self.circumstances(name))
        todo = [i for i in wanted if self.samples.keys[i] not in record.outcomes]
        size, most = self.settings.batch_size, 1 if name == "clean" else attacks.find(name).most_passes(self.n_classes)
        pace = Pace(name, len(wanted), len(wanted) - len(todo), size, most)
        with shown(pace, f"{self.title}{name}", self.subject.model, self.settings.quiet):
            for first in range(0, len(todo), size):
                index = todo[first : first + size]
                started = time.perf_counter()
                outcomes, flags = self._attack(name, index, pace.begin)
                record.add(outcomes, time.perf_counter() - started, flags, size)
                pace.advance(len(index))
        return record

    def _attack(self, name: str, index: Sequence[int], tell: attacks.Tell) -> tuple[list[Outcome], Counter[str]]:
        x, labels, ids = self.samples.batch(index, self.subject.device)
        by = [""] * len(index)
        flags: Counter[str] = Counter()
        # A ball of radius 0 holds the clean image alone; the health check runs the attack's code on it.
        if name != "clean" and self.settings.threat.eps > 0:
            attack, s = attacks.find(name), self.settings
            found = attack(self.subject.model, x, labels, s.threat, ids, s.seed, tell)
            x, by, flags = found.images, found.by, found.flags
        predicted = self.subject.predict(x).tolist()
        rows = zip((self.samples.keys[i] for i in index), predicted, by, strict=True)
        return [Outcome(*key, guess, part if guess != key[2] else None) for key, guess, part in rows], flags

    def predictions(self, records: dict[str, Record]) -> dict[str, list[int]]:
        """Predicted class after each attack, one a sample; the clean one where it is wrong already."""
        clean = records["clean"].outcomes
        return {
            name: [record.outcomes.get(key, clean[key]).predicted for key in self.samples.keys]
            for name, record in records.items()
        }

    def scores(self, records: dict[str, Record]) -> Scores:
        """Accuracies of these outcomes."""
        labels = [label for *_, label in self.samples.keys]
        right = {
            name: [guess == label for guess, label in zip(guesses, labels, strict=True)]
            for name, guesses in self.predictions(records).items()
        }
        clean = Accuracy.of(right["clean"])
        under: dict[str, AttackAccuracy] = {}
        for name in self.settings.adversarial:
            known = (records[name].outcomes.get(key) for key in self.samples.keys)
            under[name] = AttackAccuracy.of(
                right[name],
                seconds=round(records[name].seconds, 1),
                seconds_earlier=round(records[name].earlier, 1),
                runs=attacks.find(name).runs(self.n_classes),
                fooled_by=dict(Counter(outcome.by for outcome in known if outcome is not None and outcome.by)),
                flags=dict(records[name].flags),
                batch_sizes=tuple(sorted(records[name].batch_sizes)),
            )
        worst = Accuracy.of([all(sample) for sample in zip(*right.values(), strict=True)])
        return Scores(clean=clean.accuracy, clean_interval=clean.interval, attacks=under, worst=worst)
