"""Planted defences by checks: which dishonest model is caught by what, and whether honest models pass.

python -m benchmarks.defences                     a small CNN on the built-in digits; minutes
python -m benchmarks.defences --clip MODEL --data DATA --eps 1.75/255 --runs RUN RUN
                                                  defences of a CLIP model that was never made robust; honest: it and the runs
python -m benchmarks.defences --page              write the tables of docs/reliability.md again, from what is kept

Every row is kept in benchmarks/results/defences-NAME.json as soon as it is known; a second call measures what is missing.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from benchmarks.defences.page import write_page
from benchmarks.defences.subjects import clip_subjects, small_subjects
from benchmarks.defences.table import measure


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.defences", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--images", type=int, default=48, help="images of each evaluation")
    parser.add_argument("--library-images", type=int, default=12, help="of them for AutoAttack; 0 leaves it out")
    parser.add_argument("--seeds", type=int, default=3, help="honest small CNNs of each kind")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these defences and no honest models")
    parser.add_argument("--honest", action="store_true", help="the honest models only")
    parser.add_argument("--clip", help="a CLIP model to put behind the defences, instead of the small CNN")
    parser.add_argument("--data", help="its images")
    parser.add_argument("--eps", default="1/255", help="budget for it")
    parser.add_argument("--runs", nargs="*", default=[], help="run folders of it, honest models too")
    parser.add_argument("--name", help="of the file of results (default: small, or the data's name)")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--page", action="store_true", help="only write the tables of docs/reliability.md again")
    a = parser.parse_args(argv)
    if a.page:
        write_page(a.results)
    else:
        subjects = (
            clip_subjects(a.clip, a.data, a.eps, a.runs, a.images) if a.clip else small_subjects(a.seeds, a.images)
        )
        name = a.name or (Path(a.data).name if a.clip else "small")
        planted = [] if a.honest else a.only
        measure(subjects, a.results / f"defences-{name}.json", planted, a.library_images)


if __name__ == "__main__":
    main()
