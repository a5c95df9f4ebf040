"""The line is watched: clean windows seldom alarm, changed ones do, and a person sees what has changed."""

from __future__ import annotations

import csv
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hydra import compose, initialize_config_dir
from mlflow import MlflowClient
from PIL import Image, ImageFilter

from tests.conftest import Trained
from tyre_lightning import commands
from tyre_lightning.config import config_folder, register_schemas
from tyre_lightning.decision.sample import SAMPLE, Sample
from tyre_lightning.decision.shift import LEVEL, compare
from tyre_lightning.demo.drawing import write_lake
from tyre_lightning.errors import UserError
from tyre_lightning.evaluation.predictions import open_writer, read_rows
from tyre_lightning.evaluation.sampling import NUMBERS, Draw, Gathering
from tyre_lightning.line.baseline import TAG
from tyre_lightning.line.signals import CHECKS, read_signals
from tyre_lightning.line.watch import Outcome, watch
from tyre_lightning.line.window import group_of
from tyre_lightning.model.inspector import Inspector, answer_columns, nothing_seen
from tyre_lightning.prediction import predict
from tyre_lightning.tracking.registry import load_inspector

EVIL = "<img src=x onerror=alert(1)>"
SHARES = np.array([False] * 5 + [True] * 4)


@pytest.fixture(scope="module")
def inspector(trained: Trained) -> Inspector:
    return load_inspector(trained.model, trained.tracking_uri)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two clean windows of 60 tyres, named by their line and tyre, and the second one darker, softer or damaged."""
    folder = tmp_path_factory.mktemp("windows")
    found = {name: folder / name for name in ("before", "after", "dim", "soft", "damaged")}
    for seed, name in enumerate(("before", "after"), 7):
        write_lake(folder / "drawn" / name, {"line": 15}, size=64, seed=seed)
        for number, path in enumerate(sorted((folder / "drawn" / name).rglob("*.jpg"))):
            place = found[name] / f"line{1 + number % 2}" / path.name
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, place)
    for path in sorted(found["after"].rglob("*.jpg")):
        with Image.open(path) as picture:
            changed = {
                "dim": picture.point(lambda value: int(0.75 * value)),
                "soft": picture.filter(ImageFilter.GaussianBlur(1)),
            }
        for name, one in changed.items():
            place = found[name] / path.relative_to(found["after"])
            place.parent.mkdir(parents=True, exist_ok=True)
            one.save(place, quality=90)
    shutil.copytree(found["after"], found["damaged"])
    for path in sorted(found["damaged"].rglob("*.jpg"))[::3]:
        path.write_bytes(path.read_bytes()[:200])
    return found


@pytest.fixture(scope="module")
def folder(inspector: Inspector, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model as a folder, which loads faster than from the registry."""
    inspector.save(made := tmp_path_factory.mktemp("model"))
    return made


@pytest.fixture
def line(trained: Trained, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Line]:
    """A command line in a folder of its own; what it accepts is forgotten again."""
    monkeypatch.chdir(tmp_path)
    yield Line(trained, folder, tmp_path)
    MlflowClient(trained.tracking_uri).delete_model_version_tag("tyre-demo", "1", TAG)


class Line:
    """Watches."""

    def __init__(self, trained: Trained, model: Path, folder: Path) -> None:
        self.trained, self.model, self.folder = trained, model, folder

    def composed(self, verb: str, *overrides: str) -> object:
        register_schemas()
        common = [f"model={self.model}", f"tracking_uri={self.trained.tracking_uri}", "accelerator=cpu"]
        with initialize_config_dir(str(config_folder(verb)), version_base="1.3"):
            return compose(verb, overrides=[*common, *overrides])

    def watch(self, *overrides: str) -> Outcome:
        return watch(self.composed("watch", *overrides))  # type: ignore[arg-type]

    def watch_registered(self, *overrides: str) -> Outcome:
        return self.watch(f"model={self.trained.model}", *overrides)

    def predict(self, source: Path, output: str) -> str:
        predict(self.composed("predict", f"input={source}", f"output={output}"))  # type: ignore[arg-type]
        return output

    def page(self) -> str:
        return (self.folder / "watch.html").read_text(encoding="utf-8")


def shifted(found: Outcome) -> set[str]:
    return {one.signal for row in found.rows for one in row.shifted}


def tyres(count: int, random: np.random.Generator, **others: object) -> Sample:
    """Tyres whose looks vary, a tenth of them cracked."""
    bad = random.random(count) < 0.1
    rows = pd.DataFrame({name: random.normal(100, 10, count) for name in NUMBERS})
    rows["class"], rows["decision"] = np.where(bad, "crack", "good"), np.where(bad, "reject", "accept")
    rows["p_defective"], rows["unreadable"], rows["novelty"] = np.where(bad, 0.9, 0.1), 0.0, random.random(count)
    rows["tyre"] = rows["key"] = [f"line/{place}.jpg" for place in range(count)]
    return Sample.of(rows.assign(**others).to_dict("records"), NUMBERS, {"tyres": count, "pictures": count})


def draw(count: int, random: np.random.Generator) -> np.ndarray:
    """Skewed, related and partly unknown numbers, and shares from rare to frequent."""
    numbers = random.normal(size=(count, 5)) + random.normal(size=(count, 1))
    numbers[:, 0] = np.exp(2 * numbers[:, 0])
    numbers[random.random(count) < 0.7, 1] = np.nan
    return np.concatenate([numbers, random.random((count, 4)) < (0.003, 0.02, 0.1, 0.5)], axis=1)


@pytest.mark.parametrize(("before", "after"), [(60, 50), (300, 20), (30, 500)])
def test_a_clean_window_seldom_alarms(before: int, after: int) -> None:
    """In 150 draws of both, at a level of 1 %, more than 6 alarms have a chance of 1 in 1,000."""
    random, alarms = np.random.default_rng(1), 0
    for _ in range(150):
        found = compare(draw(before, random), draw(after, random), SHARES)
        alarms += bool((np.abs(found.scores) > found.critical).any())
    assert alarms <= 6
    assert found.critical < 4.5  # rare tyres and outliers leave the other columns their power


def test_a_change_is_seen_and_the_level_is_shared() -> None:
    random = np.random.default_rng(2)
    baseline, window = draw(200, random), draw(100, random)
    window[:, 2] += 1.0
    window[:, 6] = random.random(100) < 0.25
    alone, shared = (compare(baseline, window, SHARES, among) for among in (1, 20))
    assert {2, 6} <= {*np.flatnonzero(np.abs(alone.scores) > alone.critical)}
    assert alone.scores[2] > 0 and alone.chance[2] <= LEVEL / 5
    assert shared.critical > alone.critical + 0.3
    swapped = compare(window, baseline, SHARES)
    assert swapped.scores == pytest.approx(-alone.scores, abs=1e-5)


def test_equal_pictures_and_small_effects_are_no_alarm(inspector: Inspector) -> None:
    """Of thousands everything is certain, and not everything matters."""
    random = np.random.default_rng(3)
    before = tyres(3000, random, width=640.0, contrast=50.0)
    after = tyres(3000, random, width=640.0, contrast=50.1, brightness=random.normal(101.5, 10, 3000))
    model = replace(inspector, classes=["crack", "good"])
    found = {one.signal: one for one in read_signals(before, after, model, accepted=True)}
    assert found["brightness"].chance < 0.01 and found["contrast"].chance < 0.01
    assert not any(one.shifted for one in found.values())
    after = tyres(3000, random, width=640.0, contrast=50.0, brightness=random.normal(104, 10, 3000))
    found = {one.signal: one for one in read_signals(before, after, model, accepted=True)}
    assert [name for name, one in found.items() if one.shifted] == ["brightness"]
    assert found["brightness"].effect == pytest.approx(0.4, abs=0.1)


def test_a_doubled_share_of_a_defect_is_seen_against_a_window_and_not_against_validation(inspector: Inspector) -> None:
    random = np.random.default_rng(4)
    model = replace(inspector, classes=["crack", "good"])
    before, after = tyres(2000, random), tyres(2000, random)
    more = random.random(2000) < 0.25
    changes = {"class": np.where(more, "crack", "good"), "decision": np.where(more, "reject", "accept")}
    after = tyres(2000, random, **changes, p_defective=np.where(more, 0.9, 0.1))
    found = read_signals(before, after, model, accepted=True)
    assert {"share of crack", "decision reject", "P(defective)"} <= {one.signal for one in found if one.shifted}
    (crack,) = [one for one in found if one.signal == "share of crack"]
    assert "share of crack: 1" in crack.sentence() and CHECKS["share"] in crack.sentence()
    assert [*crack.towards[: more.sum()]] == [*np.flatnonzero(more)]
    of_mix = read_signals(before, after, model, accepted=False)
    assert of_mix and not any(one.shifted for one in of_mix)
    assert {one.kind for one in of_mix} == {"looks", "features"}


def test_a_draw_is_bounded_and_fair_and_has_all_pictures_of_a_tyre(inspector: Inspector) -> None:
    draw = Draw(200)
    names = [f"tyre {place % 20_000}" for place in range(60_000)]
    for name in names:
        draw.add(name)
        assert len(draw._known) == len(draw._lowest) <= 200
    assert draw.tyres == pytest.approx(20_000, rel=0.25)
    held = [place for place, name in enumerate(names) if draw.holds(name)]
    assert len(held) == 3 * 200
    assert np.mean(np.array(held) % 20_000) == pytest.approx(10_000, rel=0.15)
    few = Draw(200)
    for name in ("a", "b", "a"):
        few.add(name)
    assert few.tyres == 2 and few.holds("a") and not few.holds("c")
    gathered = Gathering(inspector)
    good = {"p_good": 0.9, "class": "good", "novelty": 0.5, "error": None, "tyre": "T"}
    gathered.add({**good, "key": "1"}, 2.0, np.arange(22).tolist())
    gathered.add({**good, "key": "2", "p_good": 0.2, "class": "crack", "novelty": 0.1}, 1.0, np.ones(22).tolist())
    gathered.add({"key": "3", "tyre": "T", **nothing_seen("damaged")})
    (row,) = gathered.sample({}).table.to_pylist()
    assert (row["key"], row["class"], row["decision"]) == ("2", "crack", "review")
    assert (row["p_defective"], row["novelty"], row["distance"], row["pictures"]) == (0.8, 0.1, 2.0, 3)
    assert (row["unreadable"], row["width"], row["height"]) == (1, 0.5, 1)


def test_a_model_knows_its_validation(trained: Trained, inspector: Inspector, tmp_path: Path) -> None:
    held = inspector.validation
    assert held is not None and len(held) == inspector.calibration.good_total > 0  # type: ignore[union-attr]
    assert held.knows("brightness") and held.knows("distance") and {*held.texts("class")} <= {*inspector.classes}
    inspector.save(tmp_path)
    assert (tmp_path / SAMPLE).is_file()
    again = Inspector.load(tmp_path).validation
    assert again is not None and again.table.equals(held.table) and again.about["tyres"] == len(held)
    (tmp_path / SAMPLE).unlink()  # as older versions saved it
    assert Inspector.load(tmp_path).validation is None


def test_a_window_is_accepted_and_later_ones_are_compared_with_it(
    line: Line, pictures: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    line.watch_registered(f"input={pictures['before']}", "accept=true", "name=new lamp", "time=2026-11-24")
    client = MlflowClient(line.trained.tracking_uri)
    tag = client.get_model_version("tyre-demo", "1").tags[TAG]
    assert client.get_run(tag).data.tags["watch.verdict"] == "accepted"
    assert "it is kept in version 1 of tyre-demo" in capsys.readouterr().out

    clean = line.watch_registered(f"input={pictures['after']}", "time=2026-11-25")
    assert not clean.shifted and clean.rows[0].verdict == "clean"
    assert "clean: 60 tyres in 60 pictures\ncompared with 60 tyres of" in (said := capsys.readouterr().out)
    assert "accepted as 'new lamp'" in said and "the page is watch.html" in said

    dim = line.watch_registered(f"input={pictures['dim']}", "time=2026-11-26T06:00")
    assert "brightness" in shifted(dim)
    said = capsys.readouterr().out
    assert re.search(r"\n  brightness: [\d.]+ to [\d.]+, -[\d.]+ standard deviations; check the lamp", said)
    page = line.page()
    assert "Check first" in page and "typical of the baseline" in page and "most shifted: brightness" in page
    assert page.count("data:image/jpeg;base64,") >= 12
    assert 'aria-label="effect in the last 2 windows"' in page  # with the clean one

    experiment = client.get_experiment_by_name("tyre-line")
    assert experiment is not None and experiment.tags["mlflow.experimentKind"] == "custom_model_development"
    newest, before, *_ = client.search_runs([experiment.experiment_id], order_by=["attributes.start_time DESC"])
    assert newest.data.tags["watch.verdict"] == "shifted" and before.data.tags["watch.verdict"] == "clean"
    assert "brightness" in newest.data.tags["watch.shifted"].split(", ")
    assert newest.data.tags["watch.model"] == "models:/tyre-demo/1"
    assert newest.data.metrics["effect/brightness"] < -0.2 and newest.data.metrics["tyres"] == 60
    (point,) = client.get_metric_history(newest.info.run_id, "effect/brightness")
    assert point.timestamp == newest.info.start_time == 1000 * point.step
    assert [one.path for one in client.list_artifacts(newest.info.run_id)] == ["watch.html"]

    assert "sharpness" in shifted(line.watch_registered(f"input={pictures['soft']}"))
    assert "unreadable" in shifted(line.watch_registered(f"input={pictures['damaged']}"))


def test_groups_are_windows_of_their_own(
    line: Line, pictures: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    mixed = line.folder / "mixed"
    shutil.copytree(pictures["after"] / "line1", mixed / "line1")
    shutil.copytree(pictures["dim"] / "line2", mixed / "line2")
    shutil.copytree(pictures["after"] / "line1", mixed / "line3")
    line.watch(f"input={pictures['before']}", "accept=true", "baseline=line.parquet")
    pattern = r"group_by='line(\d)'"
    found = line.watch(f"input={mixed}", "baseline=line.parquet", pattern)
    assert {row.group: row.verdict for row in found.rows} == {"1": "clean", "2": "shifted", "3": "not judged"}
    assert "2: shifted: 30 tyres" in (said := capsys.readouterr().out) and "\n  2: brightness: " in said
    assert group_of("x/cam-7/a.jpg", "(?:line|cam-)([0-9])") == "7" and group_of("a", "b") == "other"
    with pytest.raises(UserError, match=r"group_by='lane\(.\)' finds nothing in any key of input="):
        line.watch(f"input={mixed}", "baseline=line.parquet", "group_by='lane(.)'")
    with pytest.raises(UserError, match="makes more than 50 groups"):
        line.watch(f"input={pictures['after']}", "baseline=line.parquet", r"group_by='(\w+)\.jpg'")


def test_a_predictions_file_is_a_window_too(line: Line, pictures: dict[str, Path]) -> None:
    before, after = line.predict(pictures["before"], "b.parquet"), line.predict(pictures["after"], "a.csv")
    line.watch(f"input={before}", "accept=true", "baseline=line.parquet")
    found = line.watch(f"input={after}", "baseline=line.parquet", "output=deep/watch.html")
    assert not found.shifted
    kinds = {one.kind for row in found.rows for one in row.readings}
    assert "outputs" in kinds and not any(one.signal == "brightness" for one in found.rows[0].readings)
    assert "no picture was, so that looks" in (line.folder / "deep/watch.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl"])
def test_what_predict_writes_is_read_as_it_was(kind: str, inspector: Inspector, tmp_path: Path) -> None:
    columns = ["key", *answer_columns(inspector.columns())]
    known = dict.fromkeys(inspector.columns(), 1 / 3) | {"class": "good", "novelty": 0.25, "error": None}
    rows = [
        {**dict.fromkeys(columns), **known, "key": key, "tyre": "T", "decision": "accept"}
        for key in ("='formula', with \"commas\".jpg", "'quoted.jpg", "=x", "'=x", "plain.jpg")
    ]
    rows.append({**dict.fromkeys(columns), "key": "c.jpg", "tyre": "c.jpg", **nothing_seen("the file is empty")})
    with open_writer(output := str(tmp_path / f"rows.{kind}"), columns) as writer:
        writer.write(rows)
    assert [*read_rows(output, inspector.columns())] == rows


def test_without_a_baseline_only_looks_are_compared_with_validation(
    line: Line, pictures: dict[str, Path], inspector: Inspector, trained: Trained
) -> None:
    model = line.folder / "model"
    inspector.save(model)
    assert inspector.validation is not None
    rows = [row for _ in range(40) for row in inspector.validation.table.to_pylist()]  # as if it were larger
    for place, row in enumerate(rows):
        row |= {"class": "good", "tyre": str(place)}
    Sample.of(rows, NUMBERS, inspector.validation.about).save(model / SAMPLE)
    found = line.watch(f"input={pictures['after']}", f"model={model}")
    assert {one.kind for row in found.rows for one in row.readings} <= {"looks", "features"}
    assert "so that only what such a mix does not change is judged, on the good tyres" in line.page()
    (model / SAMPLE).unlink()
    with pytest.raises(UserError, match="does not know what validation looked like"):
        line.watch(f"input={pictures['after']}", f"model={model}")
    with pytest.raises(UserError, match="is no registered version to keep a baseline with: give baseline=FILE"):
        line.watch(f"input={pictures['after']}", f"model={model}", "accept=true")


def test_names_are_only_text_on_the_page(line: Line, pictures: dict[str, Path]) -> None:
    shutil.copytree(pictures["dim"], line.folder / "evil")
    for path in sorted((line.folder / "evil").rglob("*.jpg")):
        path.rename(path.with_name(f"{EVIL.replace('/', '')}{path.name}"))
    line.watch(f"input={pictures['before']}", "accept=true", f"name='{EVIL}'", "baseline=line.parquet")
    found = line.watch("input=evil", "baseline=line.parquet", r"group_by='(<img[^>]+>)'")
    assert [row.group for row in found.rows] == [EVIL.replace("/", "")]
    found = line.watch("input=evil", "baseline=line.parquet")
    assert found.shifted
    page = line.page()
    assert "&lt;img src=x onerror=alert(1)&gt;" in page and "<img src=x" not in page
    assert "content=\"default-src 'none';" in page and "<script" not in page


def test_exit_codes_fit_cron(
    line: Line, pictures: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*overrides: str) -> int:
        common = (f"model={line.trained.model}", f"tracking_uri={line.trained.tracking_uri}", "baseline=b.parquet")
        monkeypatch.setattr("sys.argv", ["tyre", *common, "accelerator=cpu", *overrides])
        try:
            return commands.start("watch")
        except SystemExit as left:
            return int(left.code or 0)

    assert run("accept", f"input={pictures['before']}") == 0
    assert run(f"input={pictures['after']}") == 0
    assert run(f"input={pictures['dim']}") == 5
    capsys.readouterr()
    assert run("input=nowhere") == 1
    assert capsys.readouterr().err.startswith("error: input=nowhere is no file, folder, glob")


def test_bad_input_is_one_sentence(line: Line, pictures: dict[str, Path], inspector: Inspector) -> None:
    few = line.folder / "few"
    few.mkdir()
    shutil.copy(next(pictures["after"].rglob("*.jpg")), few)
    with (line.folder / "other.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["key", "tyre"], ["a", "a"]])
    (line.folder / "damaged.parquet").write_text("no table")
    cases: list[tuple[Sequence[str], str]] = [
        (
            [f"input={few}", "accept=true", "baseline=new.parquet"],
            "has 1 tyres, and a baseline takes at least 50",
        ),
        (
            ["input=other.csv"],
            "other.csv has no column class, decision, error, novelty, p_.*: give what predict",
        ),
        (["input=damaged.parquet"], "damaged.parquet cannot be read as predictions"),
        (["input=none.csv"], "there is no file none.csv: give what predict.py wrote"),
        ([f"input={few}", "baseline=none.parquet"], "baseline=none.parquet is no file"),
        ([f"input={few}", "baseline=damaged.parquet"], "damaged.parquet is no baseline that this version wrote"),
        ([f"input={few}", "model=models:/nothing/1"], "model=models:/nothing/1 cannot be found"),
        ([f"input={few}", "name=x"], "name is that of a window that is accepted: give accept=true too"),
        ([f"input={few}", "time=yesterday"], "time=yesterday must be written as 2026-11-25"),
        ([f"input={few}", "tyres=5"], "tyres=5 must be from 100 to 100000"),
        ([f"input={few}", "group_by='('"], r"group_by='\(' is no regular expression"),
    ]
    for overrides, message in cases:
        with pytest.raises(UserError, match=message):
            line.watch(*overrides)
    line.watch(f"input={pictures['before']}", "accept=true", "baseline=b.parquet")
    other = line.folder / "model"
    replace(inspector, group_pattern="x").save(other)
    with pytest.raises(UserError, match=r"baseline=b\.parquet was accepted with another model"):
        line.watch(f"input={few}", "baseline=b.parquet", f"model={other}")
