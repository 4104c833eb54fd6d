"""Whether this is one of several training processes, by the environment variables that launchers set."""

from __future__ import annotations

import os

from apd.errors import InputError

_LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""What `accelerate launch` and `torchrun` set, all of them, for each process."""
_HARMLESS = {"RANK": "0", "WORLD_SIZE": "1"}
"""What some clusters set for every job, also for one of one process."""
_MPI = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")


def is_first_process() -> bool:
    """Whether this is the process that writes and talks; without a launcher there is one process only.

    Raises:
        InputError: variables that are left in the environment, or set by hand, without the rest of a launcher's.
            Believed, ``RANK=1`` alone would train to the end and write nothing.
    """
    given = {name: os.environ[name] for name in _LAUNCHER if os.environ.get(name)}
    if len(given) == len(_LAUNCHER):
        _check_numbers(given)
        return given["RANK"] == "0"
    named = [name for name in _LAUNCHER[:3] if name in given and given[name] != _HARMLESS.get(name)]
    wrong = [*named, *(name for name in _MPI if os.environ.get(name, "1") != "1")]
    if wrong:
        found = ", ".join(f"{name}={os.environ[name]}" for name in wrong)
        missing = ", ".join(name for name in _LAUNCHER if name not in given)
        raise InputError(
            f"The environment has {found} as if several processes trained together, but lacks {missing}. To train in one "
            f"process: unset {' '.join(wrong)}; in several: accelerate launch -m apd train …"
        )
    return True


def is_alone() -> bool:
    """Whether no other process trains along.

    Raises:
        InputError: as `is_first_process`.
    """
    return is_first_process() and int(os.environ.get("WORLD_SIZE") or 1) == 1


def _check_numbers(given: dict[str, str]) -> None:
    numbers = [given[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")]
    if not all(number.isdecimal() for number in numbers) or int(given["RANK"]) >= int(given["WORLD_SIZE"]):
        raise InputError(
            f"The environment has RANK={given['RANK']}, LOCAL_RANK={given['LOCAL_RANK']} and WORLD_SIZE={given['WORLD_SIZE']}, "
            f"but a rank is a number below WORLD_SIZE. To train in one process: unset {' '.join(given)}"
        )
