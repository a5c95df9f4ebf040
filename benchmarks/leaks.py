"""How many known leaks of a split are found, and how much better they make a test look.

``python benchmarks/leaks.py LAKE [override ...] [--seeds 0 1 2]``, where LAKE is a folder ``.../<version>`` beside a
``manifest.csv`` with the columns path, label, group (images of one tyre) and orig_split (train, valid or test: a split
that divides groups). That split is rebuilt from links; its valid and test images are tested on. ``--seeds`` without a
number trains nothing.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from mlflow import MlflowClient

from tyre_lightning.audit.audit import examine
from tyre_lightning.audit.findings import Audit
from tyre_lightning.config import DataConfig, S3Config

TRAIN = Path(__file__).parents[1] / "train.py"
METRICS = ("accuracy", "f1", "auroc_defective")

Rows = dict[str, dict[str, str]]


def rebuild(folder: Path, lake: Path) -> Rows:
    """The leaking split as a lake of links; gives the manifest's row of each key."""
    rows = {}
    with (lake.parent / "manifest.csv").open() as file:
        for row in csv.DictReader(file):
            usage = "train" if row["orig_split"] == "train" else "test"
            path = folder / usage / row["label"] / Path(row["path"]).name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.symlink_to(lake.parent / row["path"])
            rows[f"{folder.name}/{path.relative_to(folder).as_posix()}"] = row
    return rows


def score(found: Audit, rows: Rows) -> None:
    """Print recall and precision of leaked test images and of pairs, by the manifest's groups."""
    seen = {row["group"] for row in rows.values() if row["orig_split"] == "train"}
    known = {key for key, row in rows.items() if row["orig_split"] != "train" and row["group"] in seen}
    joined = {group for group, part in found.images.groupby("group") if {"train", "test"} <= {*part["usage"]}}
    test = found.images[found.images["usage"] == "test"]
    told = {*test.loc[test["group"].isin(joined), "key"]}
    right = len(known & told)
    print(f"leaked test images: {len(known)} known, {len(told)} found, {right} of them known: "
          f"recall {right / len(known):.3f}, precision {right / len(told):.3f}")  # fmt: skip
    pairs = found.of("exact copy", "near-copy")
    same = [rows[a]["group"] == rows[b]["group"] for a, b in zip(pairs["key"], pairs["other_key"], strict=True)]
    sizes = Counter(row["group"] for row in rows.values()).values()
    total = sum(size * (size - 1) // 2 for size in sizes)
    print(f"pairs: {total} known, {len(same)} found: recall {sum(same) / total:.3f}, "
          f"precision {sum(same) / len(same):.3f}")  # fmt: skip


def train(lake: Path, seed: int, overrides: list[str]) -> dict[str, float]:
    """All metrics of one training."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(TRAIN), f"data.root={lake}", f"seed={seed}", *overrides]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(done.stderr[-3000:])
        client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
        run = client.search_runs([e.experiment_id for e in client.search_experiments()])[0]
        return dict(run.data.metrics)


def main() -> None:
    """Find, then train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("lake", type=Path)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    options, overrides = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as scratch:
        lake = Path(scratch, "leaking")
        rows = rebuild(lake, options.lake.resolve())
        score(examine(DataConfig(root=str(lake)), S3Config()), rows)
        runs = [train(lake, seed, overrides) for seed in options.seeds]
    for name in METRICS if runs else ():
        whole = [run[f"test/{name}"] for run in runs]
        clean = [run[f"test_unshared/{name}"] for run in runs]
        print(f"{name}: {statistics.mean(whole):.4f} with the leaked images, {statistics.mean(clean):.4f} without "
              f"({', '.join(f'{a - b:+.4f}' for a, b in zip(whole, clean, strict=True))})", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
