"""What the terminal says while a training works, and what it is spared."""

from __future__ import annotations

import io
import logging
import logging.config
import re
import subprocess
import sys
import warnings
from contextlib import redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from mlflow import MlflowClient
from mlflow.entities import Run
from omegaconf import OmegaConf
from rich.console import Console

from tests.conftest import ONE_NETWORK, PROJECT, run_here, train_here, untracked_environment, write_images
from tyre_lightning.config import SCHEMAS, config_folder, register_schemas
from tyre_lightning.epochs import clock
from tyre_lightning.messages import ShortFormatter, TerminalHandler
from tyre_lightning.model.metrics import InspectionMetrics, escape_rate
from tyre_lightning.names import short_names
from tyre_lightning.progress import progress_bar, say
from tyre_lightning.telling import near
from tyre_lightning.tracking.leaderboard import table

UNTRACKED = ("logger.registered_model=null", "logger.system_metrics=false")
# Verbs that leave nothing of their own.
WITHOUT_FILES = ("export", "resend", "select", "review", "rates", "accept", "serve", "inbox")
OURS, THEIRS = "tyre_lightning.training", "lightning.pytorch"


def record(name: str, level: int, text: str) -> logging.LogRecord:
    return logging.LogRecord(name, level, "x.py", 1, text, None, None)


@pytest.mark.parametrize(
    ("level", "mark"), [(logging.INFO, "-"), (logging.WARNING, "!"), (logging.ERROR, "x"), (logging.CRITICAL, "x")]
)
def test_a_line_begins_with_a_mark(level: int, mark: str) -> None:
    assert ShortFormatter().format(record(OURS, level, "resuming")) == f"{mark} resuming"


def test_a_library_s_long_warning_is_a_line_and_a_pointer_and_ours_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    long = "what to do: " + "give another value; " * 20
    assert ShortFormatter("a.log").format(record("hydra", logging.INFO, long)) == f"- {long}"
    assert ShortFormatter("a/train.log").format(record(OURS, logging.WARNING, long)) == f"! {long}"
    warning = f"/usr/lib/x.py:12: UserWarning: {long}\n  warnings.warn(a + b)"
    for name, text in ((THEIRS, long), ("py.warnings", warning), ("py.warnings", f"/lib/x.py:3: {long}")):
        said = ShortFormatter("a/train.log").format(record(name, logging.WARNING, text))
        assert said.startswith("! what to do: give") and said.endswith(" ... (all of it: a/train.log)")
        assert len(said.partition(" (all")[0]) <= 60 and "\n" not in said
    assert ShortFormatter("a/train.log").format(record(THEIRS, logging.WARNING, "short")) == "! short"
    assert ShortFormatter().format(record(THEIRS, logging.ERROR, long)) == f"x {long}"


def test_names_of_others_cannot_draw_on_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    name = "cr\x1b[2Jack\u202e\udcff"
    say(f"train {name}\nval")
    assert capsys.readouterr().out == "train cr\\x1b[2Jack\\u202e\\udcff\nval\n"
    assert ShortFormatter().format(record(OURS, logging.WARNING, name)) == "! cr\\x1b[2Jack\\u202e\\udcff"


def test_a_log_goes_where_stdout_goes_now() -> None:
    handler = TerminalHandler()
    with redirect_stdout(io.StringIO()) as said:
        handler.emit(record(OURS, logging.INFO, "above the bar"))
    assert said.getvalue() == "above the bar\n"


@pytest.fixture
def own_logging() -> Any:
    """What a test sets up for all logs is gone when it ends."""
    root = logging.getLogger()
    handlers, level = [*root.handlers], root.level
    yield
    for handler in {*root.handlers} - {*handlers}:
        handler.close()
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.mark.usefixtures("own_logging")
@pytest.mark.parametrize("verb", SCHEMAS)
def test_every_verb_has_short_lines_and_a_log_file_with_all(verb: str, tmp_path: Path) -> None:
    register_schemas()
    with initialize_config_dir(str(config_folder(verb)), version_base="1.3"):
        cfg = compose(verb, return_hydra_config=True)
    OmegaConf.set_readonly(cfg.hydra, False)
    cfg.hydra.runtime.output_dir, cfg.hydra.job.name = str(tmp_path), verb
    HydraConfig.instance().set_config(cfg)
    try:
        settings = OmegaConf.to_container(cfg.hydra.job_logging, resolve=True)
        console = cfg.hydra.hydra_logging.handlers.console["class"]
    finally:
        HydraConfig.instance().cfg = None
    assert isinstance(settings, dict) and console.endswith(".TerminalHandler")
    with redirect_stdout(io.StringIO()) as said:
        logging.config.dictConfig({str(key): value for key, value in settings.items()})
        logging.getLogger(OURS).info("18 images")
        say("epoch 1")
        logging.getLogger(THEIRS).warning("%s", long := "much " * 60)
    first, row, second = said.getvalue().splitlines()
    assert (first, row) == ("- 18 images", "epoch 1")
    assert second.startswith("! much much") and len(second) < len(long)
    if verb in WITHOUT_FILES:
        assert not [*tmp_path.iterdir()]
        return
    assert second.endswith(f" ... (all of it: {tmp_path}/{verb}.log)")
    file = (tmp_path / f"{verb}.log").read_text()
    assert re.search(rf"^\[20\d\d-[\d-]+ [\d:,]+\]\[{OURS}\]\[INFO\] - 18 images$", file, re.MULTILINE)
    assert long in file and "][INFO] - epoch 1\n" in file


# train.py in a process in which training itself is only told of, with what is loaded by then.
STUBBED = """
import gc, runpy, sys, types
stub = types.ModuleType("tyre_lightning.training")
heavy = {{"torch", "lightning", "mlflow", "pandas", "scipy"}}
def train(cfg):
    print("loaded:", *sorted(heavy & {{*sys.modules}}))
    print("searched for garbage while it loads:", *searched, "and then:", gc.isenabled(), gc.get_freeze_count() > 0)
    return types.SimpleNamespace(metrics={{}})
searched = []
def load(name):
    if name != "train":
        raise AttributeError(name)
    searched.append(gc.isenabled())
    return train
stub.__getattr__ = load
sys.modules[stub.__name__] = stub
runpy.run_path({script!r}, run_name="__main__")
"""


def test_the_first_line_is_said_before_anything_heavy_is_loaded(tmp_path: Path) -> None:
    code = STUBBED.format(script=str(PROJECT / "train.py"))
    given = ["data.root=http://me:hunter222@lake/v1", "trainer.max_epochs=7"]
    environment = {**untracked_environment(), "PYTHONPATH": str(PROJECT)}
    done = subprocess.run(
        [sys.executable, "-c", code, *given], cwd=tmp_path, env=environment, capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    first, *others = done.stdout.splitlines()
    assert first == "training efficientnet_lite0 on http://lake/v1, 7 epochs at most"
    assert others == ["loaded:", "searched for garbage while it loads: False and then: True True"]


def test_a_prediction_loads_nothing_that_only_training_needs() -> None:
    heavy = "{'lightning', 'torchmetrics', 'mlflow'}"
    code = f"import sys, tyre_lightning.prediction; print(*sorted({heavy} & {{*sys.modules}}))"
    environment = {**untracked_environment(), "PYTHONPATH": str(PROJECT)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


@pytest.fixture
def lake(tmp_path: Path) -> str:
    write_images(tmp_path / "lake" / "v1", {"train": 10, "test": 4}, ("crack", "good"))
    return f"data.root={tmp_path}/lake/v1"


def test_a_run_says_what_it_does_and_what_came_of_it(
    lake: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    promise = ("operating_point.max_escape_rate=0.4", "operating_point.confidence=0.6")
    bar = "trainer.enable_progress_bar=true"
    metrics = train_here(
        tmp_path, lake, ONE_NETWORK, "logger.system_metrics=false", "trainer.max_epochs=3", bar, *promise
    )
    said = capsys.readouterr().out
    assert "\x1b" not in said and "━" not in said and "\r" not in said  # no bars: this is no terminal
    assert "  train    16 images of 16 tyres: crack 8, good 8\n" in said
    assert "  test     8 images of 8 tyres: crack 4, good 4\n" in said
    assert "; precision 32-true\n" in said and " parameters, of which " in said and "sees 32 x 32 pixels" in said
    assert f"  results  {run_here(tmp_path).relative_to(tmp_path)}\n" in said
    (title,) = re.findall(r"^epoch .*$", said, re.MULTILINE)
    assert title.split() == ["epoch", "train", "loss", "val", "loss", "macro", "F1", "AUROC(defective)", "escape@40%",
                             "time"]  # fmt: skip
    rows = [line.split() for line in re.findall(r"^ +\d  .*$", said, re.MULTILINE) if ":" in line]
    assert [row[0] for row in rows] == ["1", "2", "3"]
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    run = client.search_runs(["1"])[0].info.run_id
    names = {"train/loss_epoch": ".4f", "val/loss": ".4f", "val/f1": ".3f", "val/auroc_defective": ".3f"}
    for place, (name, form) in enumerate(names.items(), 1):
        recorded = [format(metric.value, form) for metric in client.get_metric_history(run, name)]
        assert [row[place] for row in rows] == recorded[:3], name
    answer = said[said.index("the model on 8 test images") :]
    assert f"  macro F1     {metrics['test/f1']:.3f}\n" in answer
    assert f"  AUROC        {metrics['test/auroc_defective']:.3f}" in answer
    for name in ("escape", "overkill"):
        share, low, high = (metrics[f"test/{name}_rate{end}"] for end in ("", "_low", "_high"))
        assert f"  {name:<13}{share:.1%} ({low:.1%} to {high:.1%})" in answer
    assert f"P(defective) {metrics['threshold']:.4g}\n" in answer
    (report,) = re.findall(r"^  report   (.+)$", answer, re.MULTILINE)
    assert (tmp_path / report).read_text(encoding="utf-8").startswith("<!")
    assert "  model    models:/tyre-defects/1\n" in answer
    assert answer.endswith("  next     python predict.py model=models:/tyre-defects/1 input=FOLDER\n")
    address = "http://localhost:5000/#/experiments/1/runs?workflowType=machine_learning&viewStateShareKey=tyres"
    assert f"  compare  mlflow ui --backend-store-uri sqlite:///{tmp_path}/mlflow.db\n           {address}\n" in answer
    free = (str(tmp_path), report, address)
    assert all(len(line) <= 80 for line in said.splitlines() if not any(text in line for text in free))


def test_without_a_good_class_its_columns_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_images(tmp_path / "lake" / "v1", {"train": 5, "test": 2}, ("crack", "dent"))
    train_here(tmp_path, f"data.root={tmp_path}/lake/v1", *UNTRACKED, ONE_NETWORK)
    said = capsys.readouterr().out
    assert re.search(r"^epoch  train loss  val loss  macro F1 +time$", said, re.MULTILINE)
    assert "escape@" not in said and "AUROC" not in said
    assert "  promise      none, because no class is known to be the good one" in said
    assert re.search(r"^  model    runs:/[0-9a-f]{32}/model$", said, re.MULTILINE)


@pytest.mark.parametrize(
    ("share", "passing"),
    [(0.0, 3), (0.19, 3), (0.2, 2), (0.4, 2), (0.6, 1), (0.99, 0)],  # of five good ones none, one, two, three, four
)
def test_the_escape_rate_of_a_row(share: float, passing: int) -> None:
    good = torch.tensor([0.1, 0.3, 0.5, 0.6, 0.8])
    defective = torch.tensor([0.2, 0.4, 0.7, 0.9])
    assert escape_rate(defective, good, share) == passing / 4
    metrics = InspectionMetrics(["crack", "good"], "good")
    assert metrics.escape_rate(share) is None  # nothing has been seen
    scores = torch.cat([good, defective])
    logits = torch.stack([scores, 1 - scores], dim=1).log()
    metrics.update(logits, torch.tensor([1] * 5 + [0] * 4))
    assert metrics.escape_rate(share) == passing / 4
    assert InspectionMetrics(["crack", "dent"], None).escape_rate(share) is None
    assert escape_rate(defective, good[:0], share) is None and escape_rate(good[:0], good, share) is None


def test_times_and_paths_are_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [clock(seconds) for seconds in (0.4, 7, 59.6, 754, 3723)] == ["0:00", "0:07", "1:00", "12:34", "1:02:03"]
    monkeypatch.chdir(tmp_path)
    assert near(tmp_path / "outputs" / "a") == "outputs/a"
    assert near("/elsewhere/a") == "/elsewhere/a"


def test_a_bar_is_drawn_for_a_person_alone(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar() as bar:
        bar.add_task("scoring", total=2)
    assert capsys.readouterr().out == ""


def swept(number: int, status: str, metrics: dict[str, float], **params: str) -> Run:
    info = SimpleNamespace(
        run_id=f"{number:032x}", run_name="efficientnet_lite0", status=status, start_time=0, end_time=90_000
    )
    return cast(Run, SimpleNamespace(info=info, data=SimpleNamespace(metrics=metrics, params=params, tags={})))


def test_the_table_of_a_sweep_fits_80_columns() -> None:
    found = {"val/f1": 0.9123, "test/f1": 0.8, "test/auroc_defective": 0.95, "test/escape_rate": 0.05,
             "test/overkill_rate": 0.125, "model/latency_ms": 4.12, "model/parameters": 3376132.0}  # fmt: skip
    same = {"data.root": "s3://plant/tyres/v1", "found.fingerprint": "0"}
    runs = [
        swept(1, "FINISHED", found, **same, **{"model.name": "efficientnet_lite1", "model.optimizer.head_lr": "0.003"}),
        swept(2, "FAILED", {}, **same, **{"model.name": "efficientnet_lite0", "model.optimizer.head_lr": "0.01"}),
    ]
    console = Console(file=io.StringIO(), width=80)
    console.print(table(runs))
    said = cast(io.StringIO, console.file).getvalue()
    assert all(len(line.rstrip()) <= 80 for line in said.splitlines())
    words = " ".join(said.split())
    assert words.startswith("runs of this sweep val F1 test F1 AUROC escape overkill ms min what differs 1 0.912")
    assert "1 0.912 0.800 0.950 5.0% 12.5% 4.1 1.5 name=efficientnet_lite1" in words
    assert "head_lr=0.003" in words and "FAILED name=efficientnet_lite0 head_lr=0.01" in words
    assert "s3://plant" not in words and "fingerprint" not in words and "3,376,132" not in words


def test_names_are_as_short_as_tells_them_apart() -> None:
    names = ["model.optimizer.backbone_lr", "seed", "model.name", "data.name", "name"]
    assert short_names(names) == {
        "model.optimizer.backbone_lr": "backbone_lr", "seed": "seed", "model.name": "model.name",
        "data.name": "data.name", "name": "name",
    }  # fmt: skip


def test_warnings_that_are_no_news_are_not_given() -> None:
    from tyre_lightning.messages import quiet

    with warnings.catch_warnings(record=True) as given:
        warnings.simplefilter("always")
        quiet()
        warnings.warn("It is recommended to use `self.log('val/f1', ..., sync_dist=True)` when", stacklevel=1)
        warnings.warn("`isinstance(treespec, LeafSpec)` is deprecated", FutureWarning, stacklevel=1)
        warnings.warn("the disk is nearly full", stacklevel=1)
    assert [str(item.message) for item in given] == ["the disk is nearly full"]
