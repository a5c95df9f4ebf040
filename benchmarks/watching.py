"""How often `watch` alarms when nothing has changed, and how soon it sees a change.

Tyres are drawn with smoothing from those of a lake whose looks are measured, each class by itself: a tyre's traits are
those of a real picture plus a tenth of the spread of its class. P(defective), novelty and the distance from what good
tyres look like are drawn of a model that takes a tenth of the cracks for good. A line has 96 % good tyres. From this
population baselines and windows are drawn afresh, and compared by the very function that `watch` calls, with at most as
many tyres of each as it would draw.

Prints, for baselines and windows of several sizes, clean windows that alarm in 100, over all signals together, and in
how many windows changes are seen. Naive tests are printed beside it: a Kolmogorov-Smirnov or binomial test of each
signal by itself, at the same 1 %.

Without a lake, traits are those of drawn tyres. ``--dump FOLDER`` writes such pairs of windows for
``benchmarks/watching_rival.py`` instead.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from scipy.stats import binomtest, ks_2samp

from tyre_lightning.config import OperatingPointConfig
from tyre_lightning.data.decoding import decode
from tyre_lightning.data.traits import TRAITS, measure
from tyre_lightning.decision.operating_point import OperatingPoint
from tyre_lightning.decision.sample import Sample
from tyre_lightning.demo.drawing import write_lake
from tyre_lightning.line.signals import read_signals
from tyre_lightning.model.inspector import Inspector

Floats = NDArray[np.float64]
Table = dict[str, NDArray]  # type: ignore[type-arg]

GOOD = ("good", "non_defective")
OLD, NEW = 0.04, 0.05  # shares: of tyres with a defect, and of those with a new one where there is one
WINDOWS = (50, 500, 5000)
_SMOOTHING = 0.1
_GREY = [name for name in TRAITS if name not in ("width", "height")]


class Model:
    """What `watch` asks of an inspector here."""

    def __init__(self, classes: list[str], good: str) -> None:
        self.classes, self.good_class, self.group_pattern = classes, good, None
        self.point = OperatingPoint(0.5, 0.5, OperatingPointConfig(), novel_rate=0.01)


class Population:
    """Tyres of a line.

    Args:
        lake: ``<class>/<picture>`` below it.
    """

    def __init__(self, lake: Path) -> None:
        self.traits = {}
        for folder in sorted(path for path in lake.iterdir() if path.is_dir()):
            files = sorted(folder.glob("*.jpg"))
            self.traits[folder.name] = np.array([measure(decode(file.read_bytes(), file.name)) for file in files])
        self.good = next(name for name in self.traits if name in GOOD)
        self.defects = [name for name in self.traits if name != self.good]
        self.model = cast(Inspector, Model([*self.traits], self.good))

    def draw(
        self,
        count: int,
        random: np.random.Generator,
        doubled: str | None = None,
        new: float = 0.0,
        defective: float = OLD,
    ) -> Table:
        """So many tyres; of one defect twice as many, or a share of tyres with a defect that the model never saw."""
        shares = {name: defective / len(self.defects) * (2 if name == doubled else 1) for name in self.defects}
        shares[self.good] = 1 - sum(shares.values())
        names = np.array([*shares])
        true = names[random.choice(len(names), count, p=[*shares.values()])]
        looks = np.empty((count, len(TRAITS)))
        for name, pool in self.traits.items():
            own = true == name
            picked = pool[random.integers(len(pool), size=own.sum())]
            looks[own] = picked + _SMOOTHING * pool.std(axis=0) * random.normal(size=picked.shape)
        unlike = random.random(count) < new
        seen = (true != self.good) & (random.random(count) < 0.9) | unlike & (random.random(count) < 0.5)
        said = np.where(seen, np.where(true == self.good, self.defects[0], true), self.good)
        novelty = np.where(unlike & (random.random(count) < 0.5), 0.005, random.random(count))
        far = np.exp(5 + 0.3 * random.normal(size=count) + 0.5 * unlike + 0.4 * (true != self.good))
        score = np.where(seen, random.beta(8, 1, count), random.beta(1, 20, count))
        table: Table = {name: looks[:, place] for place, name in enumerate(TRAITS)}
        table |= {"class": said, "p_defective": score, "novelty": novelty, "distance": far}
        table |= {"decision": np.where(score < 0.5, np.where(novelty <= 0.01, "review", "accept"), "reject")}
        return table | {"pictures": np.ones(count), "unreadable": (random.random(count) < 0.001).astype(float)}


def sample(table: Table) -> Sample:
    count = len(table["class"])
    names = [str(place) for place in range(count)]
    columns = table | {"tyre": names, "key": names, "picture": pa.nulls(count, pa.binary())}
    return Sample(pa.table(columns), {"tyres": count, "pictures": count})


def dimmed(table: Table) -> Table:
    """A lamp of 10 % less light."""
    return table | {name: 0.9 * table[name] for name in _GREY}


def blurred(table: Table) -> Table:
    """Edges of 15 % less strength: what a Gaussian blur of half a pixel does to real pictures of 640 pixels."""
    return table | {"sharpness": 0.85 * table["sharpness"]}


def naive(baseline: Sample, window: Sample) -> bool:
    """Whether any of many tests, each by itself, says that something differs with a chance of 1 %."""
    for name in ("p_defective", "distance", *TRAITS):
        if ks_2samp(baseline.numbers(name), window.numbers(name)).pvalue < 0.01:
            return True
    for name in {*baseline.texts("class")}:
        share = float((baseline.texts("class") == name).mean())
        count = int((window.texts("class") == name).sum())
        if 0 < share < 1 and binomtest(count, len(window), share).pvalue < 0.01:
            return True
    return False


def alarms(population: Population, before: Sample, after: Sample, *, accepted: bool = True) -> list[str]:
    return [one.signal for one in read_signals(before, after, population.model, accepted=accepted) if one.shifted]


def rate(hits: int, total: int) -> str:
    ends = binomtest(hits, total).proportion_ci(method="exact")
    return f"{100 * hits / total:5.2f} in 100 ({100 * ends.low:.2f} to {100 * ends.high:.2f})"


def level(population: Population, baselines: Sequence[int], windows: int, others: int) -> None:
    """Clean windows that alarm, each with a baseline of its own."""
    print("baseline window   watch                              naive tests")
    for size in baselines:
        for count in WINDOWS:
            random = np.random.default_rng((size, count))
            hits = loud = 0
            start = time.monotonic()
            for number in range(windows):
                before, after = (sample(population.draw(length, random)) for length in (size, count))
                hits += bool(alarms(population, before, after))
                loud += naive(before, after) if number < others else False
            each = (time.monotonic() - start) / windows
            print(f"{size:8d} {count:6d}   {rate(hits, windows)}   {rate(loud, others)}   {each:.2f} s", flush=True)


def of_validation(population: Population, tyres: int, windows: int) -> None:
    """Clean windows that alarm against good tyres of validation, where no window has been accepted."""
    for count in WINDOWS:
        random, hits = np.random.default_rng(count), 0
        for _ in range(windows):
            before = sample(population.draw(tyres, random, defective=0.0))
            hits += bool(alarms(population, before, sample(population.draw(count, random)), accepted=False))
        print(f"validation, {tyres} good tyres, {count} of the line: {rate(hits, windows)}", flush=True)


def changes_of(population: Population) -> dict[str, Callable[[int, np.random.Generator], Table]]:
    """What may change, by name: each draws a window."""
    first = population.defects[0]
    return {
        "a lamp of 10 % less light": lambda count, random: dimmed(population.draw(count, random)),
        "edges of 15 % less strength": lambda count, random: blurred(population.draw(count, random)),
        f"twice as many {first} ({OLD / len(population.defects):.1%} before)": lambda count, random: population.draw(
            count, random, doubled=first
        ),
        f"a new defect in {NEW:.0%}": lambda count, random: population.draw(count, random, new=NEW),
    }


def power(population: Population, windows: int) -> None:
    """Of windows with a change, those in which it is seen, and after how many it has been seen with 95 %."""
    for name, change in changes_of(population).items():
        for count in WINDOWS:
            random, hits, said = np.random.default_rng(count), 0, dict[str, int]()
            for _ in range(windows):
                before = sample(population.draw(2000, random))
                found = alarms(population, before, sample(change(count, random)))
                hits += bool(found)
                for signal in found:
                    said[signal] = said.get(signal, 0) + 1
            share = hits / windows
            until = "1" if share >= 0.95 else "-" if not hits else f"{math.ceil(math.log(0.05) / math.log1p(-share))}"
            by = ", ".join(sorted(said, key=lambda one: -said[one])[:3])
            print(f"{name}, {count} tyres: seen in {share:.0%}; until seen {until} windows; {by}", flush=True)


def dump(population: Population, baseline: int, clean: int, changed: int, folder: Path) -> None:
    """Write pairs of windows as ``<what>/<tyres>/<number>-before.parquet`` and ``-after.parquet``."""
    quiet: Callable[[int, np.random.Generator], Table] = population.draw
    wanted = {f"nothing, baseline {baseline}": (quiet, baseline, clean), "nothing": (quiet, 2000, changed)}
    wanted |= {name: (change, 2000, changed) for name, change in changes_of(population).items()}
    for name, (change, before, windows) in wanted.items():
        for count in WINDOWS:
            random, place = np.random.default_rng(count), folder / name / str(count)
            place.mkdir(parents=True)
            for number in range(windows):
                pq.write_table(pa.table(population.draw(before, random)), place / f"{number:03d}-before.parquet")
                pq.write_table(pa.table(change(count, random)), place / f"{number:03d}-after.parquet")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lake", nargs="?", type=Path, help="<class>/<picture> below it")
    parser.add_argument("--baselines", type=int, nargs="+", default=[180], help="tyres of a baseline")
    parser.add_argument("--windows", type=int, default=1000, help="clean ones of each size")
    parser.add_argument(
        "--naive",
        type=int,
        default=100,
        help="of them, for naive tests and for validation",
    )
    parser.add_argument("--changed", type=int, default=20, help="windows of each size with each change")
    parser.add_argument("--dump", type=Path, help="a new folder for pairs of windows, --naive clean ones of each size")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if given.lake is None:
            write_lake(Path(folder), {"line": 60}, size=128)
        population = Population(given.lake or Path(folder, "line"))
    counts = ", ".join(f"{name} {len(pool)}" for name, pool in population.traits.items())
    print(f"traits of {counts} pictures")
    if given.dump is not None:
        dump(population, given.baselines[0], given.naive, given.changed, given.dump)
        return
    level(population, given.baselines, given.windows, given.naive)
    of_validation(population, given.baselines[0], given.naive)
    power(population, given.changed)


if __name__ == "__main__":
    main()
