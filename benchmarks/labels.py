"""What labels are worth that a model asks for, against labels of tyres drawn at random.

``python benchmarks/labels.py LAKE [--seeds 0 1 2] [override ...]``, where LAKE is a local data version. Some training
pictures are labelled at the start, drawn at random, and the others wait. A model learns from the labelled ones, and
looks at those that wait. Then as many as a size says get their labels: those that ``tyre select`` picks to learn from,
or as many at random. Another model learns from all that are labelled. Prints, on the lake's test pictures, macro F1,
AUROC of defective against good, and the escape rate where 5 % of the good test tyres are rejected (chosen on them).
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

import tyre_lightning as tl
from tyre_lightning.line.select import pick
from tyre_lightning.line.strata import Window

START, SIZES, OVERKILL = 150, (100, 200, 400), 0.05
GIVEN = (  # a promise that so few validation tyres can keep
    "operating_point.max_escape_rate=0.2",
    "operating_point.confidence=0.8",
    "trainer.enable_progress_bar=false",
    "logger.tracking_uri=sqlite:///mlflow.db",
    "logger.registered_model=null",
    "logger.system_metrics=false",
)


def main() -> None:
    """Print a row for each training, then means."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("lake", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options, overrides = parser.parse_known_args()
    lake, rows = options.lake.resolve(), []
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        for seed in options.seeds:
            for row in one_seed(lake, seed, overrides):
                print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
                rows.append(row)
    means = pd.DataFrame(rows).groupby(["labels", "chosen"])[["f1", "auroc", "escape"]].agg(["mean", "std"])
    print(means.round(3).to_string())


def one_seed(lake: Path, seed: int, overrides: Sequence[str]) -> Iterator[dict[str, object]]:
    """The trainings of a seed."""
    files = np.array(sorted((lake / "train").glob("*/*")))
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(files))
    labelled, waiting = files[order[:START]], files[order[START:]]
    first = learn(lake, [*labelled], seed, overrides)
    yield {"seed": seed, "labels": START, "chosen": "at the start", **worth(first)}
    window = Window.of(first.model.predict([str(path) for path in waiting]), str(first.model.inspector.good_class), "")
    for size in SIZES:
        chosen = [place for tyre in pick(window, np.arange(len(window)), size) for place in window.places[tyre]]
        for name, more in (("selected", waiting[chosen]), ("at random", rng.permutation(waiting)[:size])):
            found = worth(learn(lake, [*labelled, *more], seed, overrides))
            yield {"seed": seed, "labels": START + size, "chosen": name, **found}


def learn(lake: Path, labelled: Sequence[Path], seed: int, overrides: Sequence[str]) -> tl.Result:
    """Train on some pictures, and on all of the lake's test pictures see what came of it."""
    root = Path(f"lake-{len(list(Path.cwd().glob('lake-*')))}")
    (root / "test").parent.mkdir()
    (root / "test").symlink_to(lake / "test")
    for path in labelled:
        (root / "train" / path.parent.name).mkdir(parents=True, exist_ok=True)
        (root / "train" / path.parent.name / path.name).symlink_to(path)
    found = tl.train(f"data.root={root}", f"seed={seed}", *GIVEN, *overrides)
    shutil.rmtree("outputs", ignore_errors=True)
    return found


def worth(found: tl.Result) -> dict[str, float]:
    """Of the test pictures."""
    scores, good = found.scores("test"), str(found.model.inspector.good_class)
    defective = 1 - scores[f"p_{good}"]
    fine = scores["true"] == good
    threshold = float(np.quantile(defective[fine], 1 - OVERKILL))
    return {
        "f1": round(found.metrics["test/f1"], 4),
        "auroc": round(found.metrics["test/auroc_defective"], 4),
        "escape": round(float((defective[~fine] <= threshold).mean()), 4),
    }


if __name__ == "__main__":
    main()
