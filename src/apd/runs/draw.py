"""Which images a run has learned from: the data and the seed they were drawn by; of an average, those of each of its runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, ValidationError

from apd.data.settings import REST, DataSettings
from apd.errors import InputError
from apd.runs.differences import hash_of_ids

if TYPE_CHECKING:
    from apd.data.dataset import Dataset
    from apd.runs.folder import Run


class Draw(BaseModel):
    """The draw of one training.

    Args:
        data: the section ``data``.
        seed: the training's, which draws the shots where the section names none.
        ids_sha256: hash of the images that it gave (`apd.runs.differences.hash_of_ids`); None where nothing was kept.
        left_out: ids of those that could not be read.
    """

    model_config = ConfigDict(frozen=True)

    data: DataSettings
    seed: int
    ids_sha256: str | None
    left_out: tuple[str, ...]

    @classmethod
    def of(cls, run: Run) -> Draw:
        """Return the draw that a run's settings ask for."""
        kept, left_out = run.manifest["data"].get("ids_sha256"), run.manifest.get("left_out", {}).get("ids", ())
        return cls(data=run.config.data, seed=run.config.train.seed, ids_sha256=kept, left_out=left_out)

    @property
    def elsewhere(self) -> str | None:
        """The source of unlabelled images that are not the data set's own."""
        return None if self.data.unlabelled == REST else self.data.unlabelled

    def load(self) -> Dataset:
        """Draw the images again, without those from elsewhere.

        Raises:
            InputError: see `apd.load_data`.
        """
        return (self.data if self.elsewhere is None else self.data.labelled()).load(self.seed)

    def is_that_of(self, drawn: Dataset) -> bool:
        """Whether images drawn now are those that were learned from; True where nothing tells."""
        own = self.data
        if self.ids_sha256 is None or self.elsewhere or (own.unlabelled is None and len(drawn.train) == 0):
            return True
        left_out = {*self.left_out}
        parts = (drawn.train, drawn.val) if own.unlabelled is None else (drawn.train, drawn.val, drawn.unlabelled)
        ids = ([id_ for id_ in images.ids if id_ not in left_out] for images in parts)
        return hash_of_ids(*ids) == self.ids_sha256


def draws_of(run: Run) -> list[Draw]:
    """List the draws that a run has learned from: its own, or those of the runs that it is the mean of.

    None of imported prompts, of which nothing says what they were learned from.

    Raises:
        InputError: a damaged ``run.json``.
    """
    averaged = [draw for other in run.manifest.get("averaged", ()) for draw in other.get("draws", ())]
    try:
        found = [Draw.model_validate(draw) for draw in averaged]
    except ValidationError as error:
        place = ".".join(map(str, error.errors()[0]["loc"]))
        raise InputError(
            f"{run.path / 'run.json'} is damaged (averaged.draws: {place}); average the runs again: apd average."
        ) from error
    return found if found or "imported" in run.manifest else [Draw.of(run)]
