"""What the comparisons of recipes share: a lake whose file names tell the tyre, a fold's metrics, and the table."""

from __future__ import annotations

import argparse
import csv
import json
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock

import numpy as np
import torch
from torchmetrics.functional.classification import binary_auroc

import tyre_lightning.data.datamodule as datamodule
from tyre_lightning.evaluation.judgement import class_metrics
from tyre_lightning.evaluation.scores import Scores
from tyre_lightning.lake.catalog import Catalog
from tyre_lightning.lake.splits import split_fold

FOLDS = 3
OWN = 0  # of pixels: as many as the recipe takes
BASELINE = "baseline"
GROUP_PATTERN = r"^g(\d+)_"
GOOD, CRACKS = "non_defective", "cracks"
METRICS = {"f1": "macro F1", "accuracy": "accuracy", "defective": "AUROC defective", "cracks": "AUROC cracks"}
REGIMES = ("all", "few", "rare")
FEW = 250  # images to train on, of which 200 are left when the validation images have been taken from them
Key = tuple[str, str, int, int]
R = TypeVar("R")
RARE = 5  # images of each defect, beside some 250 good ones


@dataclass(frozen=True)
class Result:
    """What one training is worth on its held-out fold."""

    variant: str
    regime: str
    size: int  # in pixels, or OWN
    fold: int
    metrics: dict[str, float]
    minutes: float


def link_lake(lake: Path, folder: Path) -> Path:
    """Links to all images that ``manifest.csv`` lists, as training images whose names tell their group; gives the root.

    Args:
        lake: the folder that holds the manifest and what it lists.
        folder: where the links go.
    """
    root = folder / "v1"
    with (lake / "manifest.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            source = (lake / row["path"]).resolve()
            link = root / "train" / row["label"] / f"g{row['group']}_{source.name}"
            link.parent.mkdir(parents=True, exist_ok=True)
            if not link.is_symlink():
                link.symlink_to(source)
    return root


def thin(catalog: Catalog, regime: str, seed: int) -> Catalog:
    """What a regime leaves of the training images: all, a share of every class, or a handful of every defect."""
    if regime == "all":
        return catalog
    draw = np.random.default_rng(seed)
    labels = np.array(catalog.labels())
    kept: list[int] = []
    for name, count in catalog.counts().items():
        rest = RARE if name != GOOD else count
        wanted = round(FEW * count / len(catalog)) if regime == "few" else rest
        kept += draw.permutation(np.flatnonzero(labels == name))[:wanted].tolist()
    return catalog.take(sorted(kept))


@contextmanager
def regime_in_use(regime: str) -> Iterator[None]:
    """Thin training images before validation images are taken from them; the held-out fold stays whole."""

    def split(catalog: Catalog, folds: int, fold: int, seed: int, *groups: Any) -> tuple[Catalog, Catalog]:
        kept, held_out = split_fold(catalog, folds, fold, seed, *groups)
        return thin(kept, regime, seed), held_out

    with mock.patch.object(datamodule, "split_fold", split):
        yield


def measure(scores: Scores, classes: Sequence[str]) -> dict[str, float]:
    """Macro F1, accuracy, AUROC of 1 - P(good), and the same among the images of cracks and good tyres alone."""
    found = class_metrics(scores, classes, GOOD)
    good, cracks = classes.index(GOOD), classes.index(CRACKS)
    pair = (scores.labels == good) | (scores.labels == cracks)
    defective = torch.from_numpy(scores.defective(good, 1.0)[pair])
    area = float(binary_auroc(defective, torch.from_numpy((scores.labels[pair] == cracks).astype(np.int64))))
    return {"f1": found["f1"], "accuracy": found["accuracy"], "defective": found["auroc_defective"], "cracks": area}


def parser(kind: str, names: Sequence[str], description: str | None) -> argparse.ArgumentParser:
    """The command line of a comparison: the lake, what to compare, in which setting, and where results are kept."""
    found = argparse.ArgumentParser(description=description)
    found.add_argument("lake", type=Path)
    found.add_argument("names", nargs="*", metavar=kind, help=f"of {', '.join(names)}; default: all")
    found.add_argument("--regime", choices=REGIMES, default="all")
    found.add_argument("--size", type=int, default=OWN, help="pixels in evaluation; default: the recipe's own")
    found.add_argument("--folds", type=int, nargs="+", default=range(FOLDS), help="of 0, 1, 2")
    found.add_argument("--results", type=Path, default=Path("ablation.jsonl"))
    return found


def missing(parser: argparse.ArgumentParser, options: argparse.Namespace, names: Sequence[str]) -> list[Key]:
    """What is asked for and not among the results: variant, regime, size and fold."""
    if unknown := set(options.names) - set(names):
        parser.error(f"not known: {', '.join(sorted(unknown))}")
    done = {(r.variant, r.regime, r.size, r.fold) for r in read(options.results, Result)}
    wanted = [(name, options.regime, options.size, fold) for name in options.names or names for fold in options.folds]
    return [key for key in wanted if key not in done]


def read(path: Path, kind: Callable[..., R]) -> list[R]:
    """All results of a kind so far."""
    if not path.exists():
        return []
    return [kind(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def append(path: Path, result: Any) -> None:
    """Add a line."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(result)) + "\n")


def table(results: Sequence[Result]) -> Iterator[str]:
    """Markdown: mean and spread of each variant, and in parentheses of its differences to the baseline's same folds."""
    settings: dict[tuple[str, int], dict[str, dict[int, Result]]] = defaultdict(lambda: defaultdict(dict))
    for result in results:
        settings[result.regime, result.size][result.variant][result.fold] = result
    for (regime, size), variants in settings.items():
        pixels = "the recipe's own size" if size == OWN else f"{size} pixels"
        yield f"\nImages: {regime}, {pixels}\n"
        yield "| variant | folds | " + " | ".join(METRICS.values()) + " | minutes |"
        yield "| --- " * (len(METRICS) + 3) + "|"
        for name, runs in variants.items():
            cells = [_cell(runs, variants.get(BASELINE, {}), metric) for metric in METRICS]
            minutes = statistics.mean(run.minutes for run in runs.values())
            yield f"| {name} | {len(runs)} | " + " | ".join(cells) + f" | {minutes:.1f} |"


def _cell(runs: dict[int, Result], base: dict[int, Result], metric: str) -> str:
    values = [run.metrics[metric] for run in runs.values()]
    changes = [runs[fold].metrics[metric] - base[fold].metrics[metric] for fold in runs if fold in base]
    own = f"{statistics.mean(values):.3f}{spread(values)}"
    return own if runs is base or not changes else f"{own} ({statistics.mean(changes):+.3f}{spread(changes)})"


def spread(values: Sequence[float]) -> str:
    """What follows a mean: its standard deviation, of more than one."""
    return f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
