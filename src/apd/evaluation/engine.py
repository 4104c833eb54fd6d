"""One model on one set of samples, attack by attack; what is known already is not computed again."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from torch import Tensor

from apd import attacks
from apd.evaluation.forecast import LARGEST_BATCH, Measured, measure, measure_pace
from apd.evaluation.frozen import Subject
from apd.evaluation.images import ImageFolder, folder_of
from apd.evaluation.progress import Pace, SoFar, say_clean, shown
from apd.evaluation.samples import Samples
from apd.evaluation.settings import EvaluationSettings
from apd.evaluation.store import Key, Outcome, Record, Store
from apd.util.memory import Attempt, Room
from apd.util.messages import get_logger
from apd.util.progress import counted, pretty_seconds
from apd.util.versions import versions

log = get_logger("apd.evaluation")

PRECISION = "float32"
FORETOLD = 10.0
"""Seconds of an attack that are worth a word before it."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during an attack; the text says how far it was.

    Args:
        attack: its name, and on what.
        finished: images with an outcome.
        total: images under this attack.
        begun: images that withstood the first parts of the attack.
    """

    def __init__(self, attack: str, finished: int, total: int, begun: int) -> None:
        more = f" ({begun} more withstood its first parts)" if begun else ""
        super().__init__(f"{finished} of {total} images under {attack}{more}")
        self.attack, self.finished, self.total, self.begun = attack, finished, total, begun


class Keeper(attacks.Watch):
    """Keeps what an attack has found in a batch whenever one of its parts ends.

    Args:
        record: where outcomes go.
        pace: hears which part is running and how many images are done.
        so_far: hears how many images still stand; None without an attack.
        keys: the batch's samples by id.
        done: parts of the attack that these withstood in an earlier call.
        size: images at a time, for the record.
    """

    def __init__(
        self,
        record: Record,
        pace: Pace,
        so_far: SoFar | None,
        keys: Mapping[str, Key],
        done: Sequence[str],
        size: int,
    ) -> None:
        super().__init__(done)
        self.record, self.pace, self.so_far, self.keys, self.size = record, pace, so_far, keys, size
        self.parts, self.kept = list(done), Counter[str]()
        self.since = time.perf_counter()

    def begin(self, part: str) -> None:
        """Show the part."""
        self.pace.begin(part)

    def end(self, part: str, ids: Sequence[str], predicted: Tensor, flags: Counter[str]) -> None:
        """Keep the samples that fell, and that the others withstood this part too."""
        self.parts.append(part)
        self.kept += flags
        guesses = [(self.keys[id_], guess) for id_, guess in zip(ids, predicted.tolist(), strict=True)]
        fell = [Outcome(*key, guess, part) for key, guess in guesses if guess != key[2]]
        standing = [key for key, guess in guesses if guess == key[2]]
        self.record.add(fell, self._seconds(), flags, self.size, standing, self.parts)
        if self.so_far is not None:
            self.so_far.part(part, len(self.keys), len(standing))

    def finish(self, outcomes: Sequence[Outcome], flags: Counter[str]) -> None:
        """Keep the outcomes of the whole batch; ``flags`` are those of all its parts."""
        new = [outcome for outcome in outcomes if self._is_news(outcome)]
        self.record.add(new, self._seconds(), flags - self.kept, self.size)
        self.pace.advance(len(outcomes))
        if self.so_far is not None:
            self.so_far.batch(len(outcomes), sum(outcome.predicted == outcome.label for outcome in outcomes))

    def _is_news(self, outcome: Outcome) -> bool:
        """Whether it is not known yet; a sample that was fooled once stays so when its image is made again."""
        known = self.record.outcomes.get(outcome.key)
        return known is None or (known.by is None and known != outcome)

    def _seconds(self) -> float:
        now = time.perf_counter()
        seconds, self.since = now - self.since, now
        return seconds


@dataclass(frozen=True)
class Evaluation:
    """One model on one set of samples: runs what the store does not know yet.

    Args:
        subject: the model.
        samples: the images.
        settings: attacks, eps and so on.
        store: keeps the outcomes.
        n_classes: number of classes.
        on: stands after an attack's name where it is not the model in question that is attacked.
        known: the model's pace, if it has been measured; otherwise it is measured where it is needed.
        images: folder for the images that the attacks make; None: they are not kept.
        class_names: in the order of the logits, for the index of those images.
        surroundings: what attacks may ask for besides the model; None: attacks that do are refused.
        skipped: attacks that were asked for and do not apply, because the model gives no gradient.
        room: how many images the model has room for.
    """

    subject: Subject
    samples: Samples
    settings: EvaluationSettings
    store: Store
    n_classes: int
    on: str = ""
    known: Measured | None = None
    images: Path | None = None
    class_names: tuple[str, ...] = ()
    surroundings: attacks.Surroundings | None = None
    skipped: tuple[str, ...] = ()
    room: Room = field(default_factory=Room)

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
        code = None if attack == "checks" else attacks.code_of(attack)
        about |= {} if code is None else {"code": code}
        limits = {"eps": repr(threat.eps), "norm": threat.norm, "seed": str(self.settings.seed)}
        more = self.named_attacks[attack].depends_on() if attack in self.named_attacks else {}
        return about | limits | more | {"pyautoattack": known["pyautoattack"]}

    def run(self) -> dict[str, Record]:
        """Outcomes under ``clean`` and each attack; misclassified samples are not attacked."""
        with self.subject.fixed():
            records: dict[str, Record] = {}
            for attempt, part in self._attempts():
                with attempt:
                    records["clean"] = part._find("clean", range(len(self.samples)), None)
            right = [i for i, key in enumerate(self.samples.keys) if records["clean"].outcomes[key].predicted == key[2]]
            say_clean(len(right), len(self.samples), self.on)
            for name, attack in self.named_attacks.items():
                for attempt, part in self._attempts():
                    with attempt:
                        records[name] = part._find(name, right, attack)
        return records

    @cached_property
    def named_attacks(self) -> dict[str, attacks.EvaluationAttack]:
        """The attacks that change images, by name."""
        found = {name: attacks.find(name) for name in self.settings.adversarial}
        if self.surroundings is None:
            return found
        return {name: attack.prepared(self.surroundings) for name, attack in found.items()}

    def _attempts(self) -> Iterator[tuple[Attempt, Evaluation]]:
        """Yield attempts at finding outcomes; out of memory, one that gives the model the images of a batch in smaller parts.

        It takes up where the one before was. Batches stay what they are: what attacks draw at random depends on them.
        """
        for attempt in self.room.attempts(self.settings.batch_size or LARGEST_BATCH):
            with self.subject.within(self.room) as subject:
                known = self.known or self.__dict__.get("measured") or self.__dict__.get("pace")
                yield attempt, self if subject is self.subject else replace(self, subject=subject, known=known)

    def _find(self, name: str, wanted: Sequence[int], attack: attacks.EvaluationAttack | None) -> Record:
        record = self.store.record(self.circumstances(name))
        folder = None if attack is None else self._image_folder(name)
        # An outcome without its image is found again: in the batches of the first time, on which it may depend.
        needed = (record.outcomes,) if folder is None else (record.outcomes, folder)
        todo = [i for i in wanted if any(self.samples.keys[i] not in kept for kept in needed)]
        size = self._batch_size(record, name, todo)
        if attack is not None:
            self._foretell(name, len(todo))
        most = 1 if attack is None else sum(attack.part_passes(self.n_classes))
        left = set(todo)
        known = [record.outcomes[self.samples.keys[i]] for i in wanted if i not in left]
        standing = sum(outcome.predicted == outcome.label for outcome in known)
        pace = Pace(name, len(wanted), len(known), size, most)
        so_far = None if attack is None else SoFar(name, len(wanted), len(known), standing)
        try:
            with shown(pace, f"{name}{self.on}", self.subject.model):
                # An image that fell in an unfinished batch has no file yet: with the others of the batch it is attacked again.
                for index, parts in self._batches({} if folder else record.withstood, todo, size):
                    keys = {self.samples.decoded.ids[i]: self.samples.keys[i] for i in index}
                    keeper = Keeper(record, pace, so_far, keys, parts, size)
                    keeper.finish(*self._attack(attack, index, keeper, folder))
        except KeyboardInterrupt as stop:
            kept = (record.outcomes, record.withstood)
            finished, begun = (sum(self.samples.keys[i] in some for i in wanted) for some in kept)
            raise Interrupted(f"{name}{self.on}", finished, len(wanted), begun) from stop
        if folder is not None:
            folder.write(complete=True)
            log.info(folder.summary())
        return record

    def _image_folder(self, name: str) -> ImageFolder | None:
        """Where the images of this attack are kept, if they are."""
        threat = self.named_attacks[name].limits(self.settings.threat)
        if self.images is None or threat.eps == 0:
            return None
        about = self.circumstances(name)
        return ImageFolder(folder_of(self.images, about), {**about, "eps": threat.eps}, self.class_names)

    def _predict_on_cpu(self, x: Tensor) -> Tensor:
        return self.subject.predict(x.to(self.subject.device)).cpu()

    @cached_property
    def measured(self) -> Measured:
        """Pace of the model, measured when it is first needed."""
        return self.known or measure(self.subject, self.samples, self.settings)

    @cached_property
    def pace(self) -> Measured:
        """Pace of the model as if no image fell: cheap to measure, and often enough to tell that all are quick."""
        return self.known or measure_pace(self.subject, self.samples, self.settings)

    def _batch_size(self, record: Record, name: str, todo: Sequence[int]) -> int:
        """Images at a time: as they were set, else as in an earlier call, on which APGD and AutoAttack depend."""
        if self.settings.batch_size is not None:
            return self.settings.batch_size
        if record.batch_sizes or not todo:
            return max(record.batch_sizes, default=LARGEST_BATCH)
        if self.pace.batch_size(name, self.n_classes) == LARGEST_BATCH:
            return LARGEST_BATCH
        return self.measured.batch_size(name, self.n_classes)

    def _foretell(self, name: str, n: int) -> None:
        """Say how long an attack on ``n`` images takes at most, where a limit was set: else the choice of the sample said it."""
        known = self.known or self.__dict__.get("pace")  # measured already, if the size of batches was not known
        if n and known is not None and self.settings.limit != "auto":
            seconds = known.expected_seconds(n, [name], self.n_classes)
            if seconds >= FORETOLD:
                log.info(f"  {name}{self.on} on {counted(n, 'image')}: at most about {pretty_seconds(seconds)}")

    def _batches(
        self, withstood: Mapping[Key, tuple[str, ...]], todo: Sequence[int], size: int
    ) -> Iterator[tuple[Sequence[int], tuple[str, ...]]]:
        """Batches of what is to do, and the parts of the attack that each of them withstood in an earlier call.

        What an earlier call left in the middle of an attack stays one batch: the library's random numbers depend on it.
        """
        groups: dict[tuple[str, ...], list[int]] = {}
        for i in todo:
            groups.setdefault(withstood.get(self.samples.keys[i], ()), []).append(i)
        for parts, index in sorted(groups.items(), key=lambda group: not group[0]):
            yield from ((index[first : first + size], parts) for first in range(0, len(index), size))

    def _attack(
        self,
        attack: attacks.EvaluationAttack | None,
        index: Sequence[int],
        watch: attacks.Watch,
        folder: ImageFolder | None = None,
    ) -> tuple[list[Outcome], Counter[str]]:
        x, labels, ids = self.samples.batch(index, self.subject.device)
        by = [""] * len(index)
        flags: Counter[str] = Counter()
        s = self.settings
        # A ball of radius 0 holds the clean image alone; the health check runs the attack's code on it.
        if attack is not None and (limits := attack.limits(s.threat)).eps > 0:
            batch = attacks.AttackBatch(x, labels, ids, s.seed)
            found = attack.checked(attack(self.subject.model, batch.copy(), s.threat, watch), batch, s.threat)
            clean, x, by, flags = x, found.images, found.by, found.flags
            if folder is not None:
                keys = [self.samples.keys[i] for i in index]
                folder.add(keys, clean.cpu(), x.cpu(), by, limits, self._predict_on_cpu)
        predicted = self.subject.predict(x).tolist()
        rows = zip((self.samples.keys[i] for i in index), predicted, by, strict=True)
        return [Outcome(*key, guess, part if guess != key[2] else None) for key, guess, part in rows], flags
