"""What evidently says of the windows that `watch` was tried on.

``python benchmarks/watching.py LAKE --dump FOLDER``, then ``python benchmarks/watching_rival.py FOLDER`` in an
environment with evidently 0.7 (and pandas 2, which it needs). Prints, of clean windows and of changed ones, in how many
its preset for data drift says that the data set has drifted (half of the columns have), and that some column has.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd
from evidently import Report
from evidently.presets import DataDriftPreset


def verdict(before: pd.DataFrame, after: pd.DataFrame) -> tuple[bool, bool]:
    """Whether the data set, and whether some column, has drifted."""
    varied = [name for name in before if before[name].nunique() > 1]
    first = Report([DataDriftPreset()]).run(after[varied], before[varied]).dict()["metrics"][0]["value"]
    return first["share"] >= 0.5, first["count"] > 0


def main() -> None:
    """Print a row for each kind of windows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    for place in sorted(parser.parse_args().folder.glob("*/*"), key=lambda path: (path.parent.name, int(path.name))):
        found = [
            verdict(pd.read_parquet(path), pd.read_parquet(str(path).replace("-before", "-after")))
            for path in sorted(place.glob("*-before.parquet"))
        ]
        whole, some = (100 * sum(column) / len(found) for column in zip(*found, strict=True))
        name = f"{place.parent.name}, {place.name} tyres, {len(found)} windows"
        print(f"{name}: data set {whole:.0f} %, some column {some:.0f} %", flush=True)


if __name__ == "__main__":
    main()
