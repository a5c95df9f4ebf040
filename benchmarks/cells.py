"""What the default recipe is worth on other people's pictures: cells of solar panels, as they shine under current.

``python benchmarks/cells.py CELLS [--quarters 0 1 2 3]``, where CELLS is the folder ``data`` of PyPI's ``elpv-dataset``
(Buerhop-Lutz et al. 2018; Deitsch et al., Solar Energy 185, 2019; CC BY-NC-SA): 2,624 pictures with a probability of a
defect in thirds; defective is what has more than one half. Of each probability and type of cell, a quarter is held out.
``--certain`` trains without those that are doubtful, one third and two thirds, and tests on all as before.
A line for each training is added to ``--results``; what is there already is not done again.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import chdir
from dataclasses import asdict, dataclass
from pathlib import Path

import folds as shared
import numpy as np
from sklearn.metrics import f1_score, roc_auc_score

import tyre_lightning as tl

GOOD, DEFECTIVE = "good", "defective"
METRICS = ("accuracy", "f1", "auroc", "escape", "overkill", "minutes")


@dataclass(frozen=True)
class Result:
    """Of one training, on the quarter that was held out: the metrics, and both rates by the promise of 5 % at 95 %."""

    quarter: int
    certain: bool
    accuracy: float
    f1: float
    auroc: float
    escape: float
    overkill: float
    minutes: float


def lay(cells: Path, folder: Path, quarter: int, *, certain: bool) -> Path:
    """Links as a lake whose test images are a quarter of each label and type of cell."""
    rows = [line.split() for line in (cells / "labels.csv").read_text(encoding="utf-8").splitlines()]
    kinds = np.array([f"{float(label):.2f} {kind}" for _, label, kind in rows])
    for kind in np.unique(kinds):
        places = np.random.default_rng(0).permutation(np.flatnonzero(kinds == kind))
        for rank, place in enumerate(places):
            name, label, _ = rows[place]
            held = rank * 4 // len(places) == quarter
            if not held and certain and 0 < float(label) < 1:
                continue
            link = (
                folder / ("test" if held else "train") / (DEFECTIVE if float(label) > 0.5 else GOOD) / Path(name).name
            )
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to((cells / name).resolve())
    return folder


def run(cells: Path, quarter: int, overrides: Sequence[str], *, certain: bool) -> Result:
    """Train once, and ask the registered model about the held-out quarter as predict.py would."""
    with tempfile.TemporaryDirectory() as scratch, chdir(scratch):
        root, started = lay(cells, Path(scratch, "v1"), quarter, certain=certain), time.monotonic()
        found = tl.train(
            f"data.root={root}", f"seed={quarter}", "trainer.enable_progress_bar=false", "logger.system_metrics=false",
            "data.num_workers=0", f"logger.tracking_uri=sqlite:///{scratch}/mlflow.db",
            f"paths.output_dir={scratch}/outputs", *overrides,
        )  # fmt: skip
        minutes = (time.monotonic() - started) / 60
        tables = {name: found.model.predict(str(root / "test" / name)) for name in (GOOD, DEFECTIVE)}
    truth = np.repeat([0, 1], [len(tables[name]) for name in (GOOD, DEFECTIVE)])
    said = np.concatenate([tables[name]["class"] == DEFECTIVE for name in (GOOD, DEFECTIVE)])
    scores = np.concatenate([tables[name][f"p_{DEFECTIVE}"] for name in (GOOD, DEFECTIVE)])
    escape = float((tables[DEFECTIVE]["decision"] == "accept").mean())
    overkill = float((tables[GOOD]["decision"] == "reject").mean())
    accuracy, f1 = float((said == truth).mean()), float(f1_score(truth, said, average="macro"))
    return Result(quarter, certain, accuracy, f1, float(roc_auc_score(truth, scores)), escape, overkill, minutes)


def lines(results: Sequence[Result]) -> Iterator[str]:
    """Markdown: mean and spread of each metric."""
    yield f"| training | quarters | {' | '.join(METRICS)} |"
    yield f"| --- | --- {'| --- ' * len(METRICS)}|"
    for certain in (False, True):
        if chosen := [asdict(result) for result in results if result.certain is certain]:
            columns = [[result[name] for result in chosen] for name in METRICS]
            cells = [f"{statistics.mean(column):.3f}{shared.spread(column)}" for column in columns]
            yield f"| {'certain labels' if certain else 'all'} | {len(chosen)} | {' | '.join(cells)} |"


def main() -> None:
    """Train what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cells", type=Path)
    parser.add_argument("--quarters", type=int, nargs="+", default=range(4))
    parser.add_argument("--certain", action="store_true")
    parser.add_argument("--overrides", nargs="*", default=[], metavar="KEY=VALUE", help="another recipe")
    parser.add_argument("--results", type=Path, default=Path("cells.jsonl"))
    options = parser.parse_args()
    path = options.results.resolve()
    done = shared.read(path, Result)
    for quarter in options.quarters:
        if not any((one.quarter, one.certain) == (quarter, options.certain) for one in done):
            done.append(run(options.cells.resolve(), quarter, options.overrides, certain=options.certain))
            print(done[-1], flush=True)
            shared.append(path, done[-1])
    print("\n".join(lines(done)))


if __name__ == "__main__":
    main()
