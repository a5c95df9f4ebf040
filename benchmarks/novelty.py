"""What a model is worth on held-out tyres, and what novelty is: what it keeps from being accepted that shows no tyre, a
defect that nobody has shown, or a spoilt picture.

``python benchmarks/novelty.py LAKE [--far NAME=FOLDER ...]``, where LAKE is a folder with ``manifest.csv``, whose
``group`` is the tyre. For each fold a training on the others' images, and one without each defect. Of the held-out
fold's tyres, and of the pictures in other folders (drawn tyres and pictures of nothing are always among them), counts
by the trained model's verdicts, as predict.py gives them, how many are accepted by ``max_novel_rate`` as it is and at
5 %, and how many would be without novelty. Where training lacked no defect, some of the held-out pictures are made
dark, bright, blurred and so on too, in five strengths: how many are still classified rightly, and how many reviewed.
A line for each training is added to ``--results``; what is there already is not done again. ``--reverse`` trains on
drawn tyres, and LAKE's are among what it is shown.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import chdir
from dataclasses import dataclass, field, replace
from pathlib import Path

import folds as shared
import numpy as np
import pandas as pd
from PIL import Image, ImageEnhance, ImageFilter
from sklearn.metrics import f1_score, roc_auc_score

import tyre_lightning as tl
from tyre_lightning.demo.drawing import write_lake
from tyre_lightning.evaluation.gallery import contact_sheet, thumbnails
from tyre_lightning.lake.listing import is_image, read_catalog
from tyre_lightning.lake.splits import split_fold
from tyre_lightning.lake.store import FolderStore
from tyre_lightning.lake.tyres import find_tyre

NOBODY = "none"
OTHER = 0.05
_DRAWN = 40  # pictures of each class
_LEARNT = 200  # likewise, where drawn tyres are what is learnt
_SIDE = 320
_SPOILT = 150  # tyres


@dataclass(frozen=True)
class Result:
    """Of one training.

    Args:
        fold: that was held out.
        without: the defect that it lacked.
        promised: the share of good tyres that are novel.
        counts: by what was shown, how many there were, were accepted, would be at 5 %, and without novelty.
        metrics: of the held-out images, those of the recipes' comparison.
        spoilt: by what was done to pictures, for each strength: the accuracy; and the shares reviewed, of good tyres
            accepted and of defective ones accepted.
    """

    fold: int
    without: str
    promised: float | None
    counts: dict[str, tuple[int, int, int, int]]
    metrics: dict[str, float] = field(default_factory=dict)
    spoilt: dict[str, list[tuple[float, float, float, float]]] = field(default_factory=dict)


def lay_fold(lake: Path, folder: Path, fold: int, without: str) -> Path:
    """Links: ``v1/train`` has the other folds' images but for one defect, ``held/<class>`` this fold's; gives v1."""
    root = shared.link_lake(lake, folder / "all")
    classes = sorted(path.name for path in (root / "train").iterdir())
    catalog = read_catalog(FolderStore(str(root)), "train", classes, strict=True)
    groups = [find_tyre(key, shared.GROUP_PATTERN) or key for key in catalog.keys()]
    train, held = split_fold(catalog, shared.FOLDS, fold, fold, groups)
    for part, place in ((train, "v1/train"), (held, "held")):
        for key in part.keys():
            *_, label, name = key.split("/")
            if place == "held" or label != without:
                link = folder / place / label / name
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to((root / "train" / label / name).resolve())
    return folder / "v1"


def nothing() -> Iterator[Image.Image]:
    """What a camera sees that sees no tyre: grey of each shade, colours, noise, gradients, clouds."""
    draw = np.random.default_rng(0)
    for shade in range(0, 256, 32):
        yield Image.new("RGB", (_SIDE, _SIDE), (shade,) * 3)
    for place in range(3):
        yield Image.new("RGB", (_SIDE, _SIDE), tuple(200 if i == place else 0 for i in range(3)))
    for spread in (5, 20, 60):
        yield _picture(draw.normal(127, spread, (_SIDE, _SIDE, 3)))
        yield _picture(np.repeat(draw.normal(127, spread, (_SIDE, _SIDE, 1)), 3, 2))
    slope = np.linspace(0, 255, _SIDE)
    yield _picture(np.repeat(np.broadcast_to(slope, (_SIDE, _SIDE))[:, :, None], 3, 2))
    for count in (2, 4, 8):
        for _ in range(3):
            small = Image.fromarray(draw.integers(0, 256, (count, count, 3)).astype(np.uint8))
            yield small.resize((_SIDE, _SIDE), Image.Resampling.BICUBIC)


def _picture(values: np.ndarray) -> Image.Image:
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))


def draw_lake(folder: Path) -> Path:
    """Drawn tyres, each a group of its own, and none that :func:`lay_far` draws; gives a folder with a manifest.

    Two classes are called there as the real tyres' are.
    """
    write_lake(folder / "v1", {"train": _LEARNT}, size=_SIDE, seed=1)
    paths = sorted((folder / "v1" / "train").rglob("*.jpg"))
    named = {"good": shared.GOOD, "crack": shared.CRACKS}
    rows = [
        {"path": path.relative_to(folder), "label": named.get(path.parent.name, path.parent.name), "group": place}
        for place, path in enumerate(paths)
    ]
    pd.DataFrame(rows).to_csv(folder / "manifest.csv", index=False)
    return folder


def lay_far(folder: Path, given: dict[str, str]) -> dict[str, Path]:
    """Drawn tyres, pictures of nothing, and what is given, under names that tell each picture's tyre: it is one."""
    write_lake(folder / "drawn", {"train": _DRAWN}, size=_SIDE)
    (folder / "nothing").mkdir()
    for number, picture in enumerate(nothing()):
        picture.save(folder / "nothing" / f"{number}.png")
    sources = {"drawn tyres": folder / "drawn", "nothing": folder / "nothing"}
    sources |= {name: Path(path).resolve() for name, path in given.items()}
    for place, source in enumerate(sources.values()):
        (folder / f"far{place}").mkdir()
        for number, path in enumerate(sorted(path for path in source.rglob("*.*") if is_image(path.name))):
            (folder / f"far{place}" / f"g{number}_{path.name}").symlink_to(path.resolve())
    return {name: folder / f"far{place}" for place, name in enumerate(sources)}


def run(
    lake: Path, fold: int, without: str, far: dict[str, Path], keep: Path | None, overrides: Sequence[str]
) -> Result:
    """Train once, and ask for verdicts."""
    with tempfile.TemporaryDirectory() as scratch, chdir(scratch):
        root = lay_fold(lake, Path(scratch), fold, without)
        found = tl.train(
            f"data.root={root}", f"data.group_pattern='{shared.GROUP_PATTERN}'", "data.near_copies=false",
            f"seed={fold}", "trainer.enable_progress_bar=false", "logger.system_metrics=false", "data.num_workers=0",
            "operating_point.confidence=0.9", "logger.registered_model=null",
            f"logger.tracking_uri=sqlite:///{scratch}/mlflow.db", f"paths.output_dir={scratch}/outputs", *overrides,
        )  # fmt: skip
        model = found.model
        shown = {path.name: path for path in sorted(Path(scratch, "held").iterdir())} | far
        tables = {name: model.predict(str(folder)) for name, folder in shown.items()}
        counts = {name: count(model, table) for name, table in tables.items()}
        held = {name: table for name, table in tables.items() if name not in far}
        if keep is not None:
            pd.concat(held).to_parquet(keep / f"{without}-{fold}.parquet")
            show_escapes(pd.concat(held), Path(scratch, "held")).save(keep / f"{without}-{fold}.png")
        spoilt = spoil(model, Path(scratch, "held")) if without == NOBODY else {}
        point = model.inspector.point
        rate = None if point is None else point.novel_rate
        return Result(fold, without, rate, counts, measure(held, model.inspector.classes), spoilt)


def show_escapes(rows: pd.DataFrame, held: Path) -> Image.Image:
    """The defective held-out pictures that were accepted, the surest first."""
    rows = rows.assign(true=rows.index.get_level_values(0))
    rows = rows[(rows["true"] != shared.GOOD) & (rows["decision"] == "accept")].sort_values(f"p_{shared.GOOD}")[::-1]
    titles = [f"{row.true}\nP(good) {row[f'p_{shared.GOOD}']:.2f}" for _, row in rows.iterrows()]
    tiles = thumbnails(FolderStore(str(held)), [f"{held.name}/{key}" for key in rows["key"]])
    return contact_sheet([*tiles], titles, f"{len(rows)} accepted of {held.name}")


def measure(held: dict[str, pd.DataFrame], classes: list[str]) -> dict[str, float]:
    """Macro F1, accuracy and both AUROCs of the rows of each class."""
    rows = pd.concat(held).droplevel(1).dropna(subset="class")
    score = 1 - rows[f"p_{shared.GOOD}"]
    pair = rows.index.isin([shared.GOOD, shared.CRACKS])
    return {
        "f1": f1_score(rows.index, rows["class"], labels=classes, average="macro"),
        "accuracy": float((rows.index == rows["class"]).mean()),
        "defective": roc_auc_score(rows.index != shared.GOOD, score),
        "cracks": roc_auc_score(rows.index[pair] != shared.GOOD, score[pair]),
    }


def _lit(by: float, image: Image.Image) -> Image.Image:
    return ImageEnhance.Brightness(image).enhance(by)


def _blurred(by: float, image: Image.Image) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(by))


def _noisy(by: float, image: Image.Image) -> Image.Image:
    pixels = np.asarray(image, float)
    return _picture(pixels + np.random.default_rng(0).normal(0, by, pixels.shape))


def _turned(by: float, image: Image.Image) -> Image.Image:
    return image.rotate(by, expand=True)


def _covered(by: float, image: Image.Image) -> Image.Image:
    covered = image.copy()
    covered.paste((90, 90, 90), (0, 0, round(image.width * by), image.height))
    return covered


def _reddened(by: float, image: Image.Image) -> Image.Image:
    return _picture(np.asarray(image, float) * [1 + by, 1, 1 - by])


SPOILT: dict[str, tuple[Callable[[float, Image.Image], Image.Image], tuple[float, ...]]] = {
    "as it is": (_turned, (0,)),
    "dark": (_lit, (0.8, 0.6, 0.4, 0.25, 0.1)),
    "bright": (_lit, (1.25, 1.6, 2, 3, 5)),
    "blurred": (_blurred, (1, 2, 4, 8, 16)),
    "noisy": (_noisy, (5, 10, 20, 40, 80)),
    "turned": (_turned, (90, 180, 270)),
    "covered": (_covered, (0.1, 0.2, 0.3, 0.4, 0.5)),
    "reddened": (_reddened, (0.1, 0.2, 0.3, 0.5, 0.8)),
}


def spoil(model: tl.Model, held: Path) -> dict[str, list[tuple[float, float, float, float]]]:
    """Verdicts on spoilt pictures, one of each of some tyres."""
    tyres = {path.name.partition("_")[0]: path for path in sorted(held.rglob("*.jpg"))}
    paths = [*tyres.values()][:: max(1, len(tyres) // _SPOILT)]
    images = [Image.open(path).convert("RGB") for path in paths]
    labels = np.array([path.parent.name for path in paths])
    good = labels == shared.GOOD
    found: dict[str, list[tuple[float, float, float, float]]] = {name: [] for name in SPOILT}
    for name, (change, strengths) in SPOILT.items():
        for strength in strengths:
            rows = model.predict([change(strength, image) for image in images])
            said = rows["decision"].to_numpy()
            shares = (said == "review").mean(), (said == "accept")[good].mean(), (said == "accept")[~good].mean()
            reviewed, passed, escaped = map(float, shares)
            found[name].append((float((rows["class"].to_numpy() == labels).mean()), reviewed, passed, escaped))
    return found


def count(model: tl.Model, table: pd.DataFrame) -> tuple[int, int, int, int]:
    """Tyres, those that are accepted, would be at the other rate, and would be without novelty."""
    point, calibration, good = model.inspector.point, model.inspector.calibration, model.inspector.good_class
    assert point is not None and calibration is not None
    other = replace(point, novel_rate=calibration.scale.rate(OTHER))
    table = table.assign(tyre=table["tyre"].fillna(table["key"]), score=1 - table[f"p_{good}"])
    tyres = table.groupby("tyre").agg({"score": "max", "novelty": "min"})
    passed = tyres["score"] < point.threshold
    first, second = (int((passed & ~tyres["novelty"].map(at.is_novel)).sum()) for at in (point, other))
    return len(tyres), first, second, int(passed.sum())


def lines(results: list[Result]) -> Iterator[str]:
    """Markdown: the accepted share of everything, with and without novelty, by what training had not seen."""
    kinds: dict[str, dict[str, list[list[float]]]] = defaultdict(lambda: defaultdict(list))
    for result in results:
        for name, (total, *accepted) in result.counts.items():
            kinds[result.without][name].append([number / total for number in accepted])
    yield "| training without | of | trainings | accepted, 1 % asked for | 5 % asked for | without novelty |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for without, found in kinds.items():
        for name, rates in found.items():
            cells = [f"{statistics.mean(column):.1%}" for column in zip(*rates, strict=True)]
            yield f"| {without} | {name} | {len(rates)} | {' | '.join(cells)} |"
    whole = [result for result in results if result.metrics and result.without == NOBODY]
    for metric, name in shared.METRICS.items() if whole else ():
        values = [result.metrics[metric] for result in whole]
        yield f"\n{name}: {statistics.mean(values):.3f}{shared.spread(values)} of {len(values)} trainings"
    yield "\n| what was done | accuracy, by strength | reviewed | good accepted | defective accepted |"
    yield "| --- | --- | --- | --- | --- |"
    for name in SPOILT:
        every = [result.spoilt[name] for result in results if name in result.spoilt]
        if every:
            means = np.mean(every, axis=0).T  # [4, strengths]
            yield f"| {name} | {' | '.join(' '.join(f'{value:.0%}' for value in row) for row in means)} |"


def main() -> None:
    """Train what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("lake", type=Path)
    parser.add_argument("--far", nargs="*", default=[], metavar="NAME=FOLDER")
    parser.add_argument("--reverse", action="store_true", help="train on drawn tyres, show the lake's")
    parser.add_argument("--folds", type=int, nargs="+", default=range(shared.FOLDS))
    parser.add_argument("--without", nargs="+", default=[NOBODY, "bulge", "cracks", "flat_spots"])
    parser.add_argument("--overrides", nargs="*", default=[], metavar="KEY=VALUE", help="another recipe")
    parser.add_argument("--keep", type=Path, help="a folder for what is said of the held-out images")
    parser.add_argument("--results", type=Path, default=Path("novelty.jsonl"))
    options = parser.parse_args()
    path, keep = options.results.resolve(), options.keep and options.keep.resolve()
    done = shared.read(path, Result)
    lake, given = options.lake.resolve(), dict(item.split("=", 1) for item in options.far)
    with tempfile.TemporaryDirectory() as scratch:
        if options.reverse:
            given |= {"real tyres": str(lake)}
            lake = draw_lake(Path(scratch, "learnt"))
        far = lay_far(Path(scratch), given)
        for fold in options.folds:
            for without in options.without:
                if not any((one.fold, one.without) == (fold, without) for one in done):
                    done.append(run(lake, fold, without, far, keep, options.overrides))
                    print(done[-1], flush=True)
                    shared.append(path, done[-1])
    print("\n".join(lines(done)))


if __name__ == "__main__":
    main()
