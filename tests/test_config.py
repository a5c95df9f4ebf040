"""Every shipped config composes and holds; every mistake in one is a single sentence with a way out."""

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from tests.cases import first_of
from tests.conftest import PROJECT, run_script
from tyre_lightning.command_line import check_config, explain, is_mistake
from tyre_lightning.config import (
    BACKBONES,
    CONF,
    SCHEMAS,
    TrainConfig,
    config_folder,
    known_keys,
    register_schemas,
    to_audit_config,
    to_predict_config,
    to_promote_config,
    to_train_config,
    to_watch_config,
)
from tyre_lightning.errors import UserError
from tyre_lightning.written import text_keys

OWN = tuple(name for name in SCHEMAS if config_folder(name) != CONF)  # commands with a folder of their own
GROUPS = sorted(folder.name for folder in CONF.iterdir() if folder.is_dir() and folder.name not in OWN)
FILES = [(group, path.stem) for group in GROUPS for path in sorted((CONF / group).glob("*.yaml"))]


@pytest.mark.parametrize(("group", "name"), FILES)
def test_every_shipped_config_composes_and_is_valid(group: str, name: str) -> None:
    register_schemas()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", overrides=[f"{group}={name}", "data.root=lake"])
    check_config(cfg)
    config = to_train_config(cfg)
    if group == "model" and name not in ("default", "timm"):
        assert config.model.name == name


def test_there_is_a_config_for_every_backbone() -> None:
    assert {name for group, name in FILES if group == "model"} == {*BACKBONES, "default", "timm"}


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("predict", ["model=models:/tyres/1", "input=folder"]),
        ("promote", ["model=tyres"]),
        ("watch", ["model=models:/tyres/1", "input=folder"]),
    ],
)
def test_configs_of_commands_with_a_folder_of_their_own_compose(name: str, overrides: list[str]) -> None:
    register_schemas()
    with initialize_config_dir(str(config_folder(name)), version_base="1.3"):
        cfg = compose(name, overrides=overrides)
    check_config(cfg)
    assert f"model={cfg.model}" in overrides


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("gate.confidence=0.5", r"gate\.confidence=0\.5 must be between 0\.5 and 1"),
        ("gate.margin=0", r"gate\.margin=0\.0 must be between 0 and 1"),
        ("gate.max_latency_ms=0", r"gate\.max_latency_ms=0\.0 must be more than 0"),
        ("model=null", "model is not set"),
    ],
)
def test_a_gate_that_makes_no_sense_is_refused(override: str, message: str) -> None:
    register_schemas()
    with initialize_config_dir(str(config_folder("promote")), version_base="1.3"):
        cfg = compose("promote", overrides=[override])
    with pytest.raises(UserError, match=message):
        check_config(cfg)


@pytest.mark.parametrize("name", ["train", "audit", *OWN])
def test_yaml_files_and_schema_agree_on_every_default(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python callers and the command line must do alike."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)  # MLflow sets it where a test uses MLflow
    register_schemas()
    with initialize_config_dir(str(config_folder(name)), version_base="1.3"):
        cfg = compose(name)
    schema = OmegaConf.structured(type(OmegaConf.to_object(cfg)))
    for key in known_keys(type(OmegaConf.to_object(cfg))):
        assert OmegaConf.select(cfg, key) == OmegaConf.select(schema, key), key


MISTAKES = [
    (["data.btch_size=3"], "unknown config key 'data.btch_size': did you mean 'data.batch_size'?"),
    (["+data.btch_size=3"], "unknown config key 'data.btch_size': did you mean 'data.batch_size'?"),
    (["++trainer.max_epoch=3"], "unknown config key 'trainer.max_epoch': did you mean 'trainer.max_epochs'?"),
    (["+lr=3"], "unknown config key 'lr'"),
    (["batch_size=3"], "unknown config key 'batch_size': did you mean 'data.batch_size'?"),
    (["model=efficientnet_b9"], "there is no model=efficientnet_b9: did you mean"),
    (["model.name=resnet50"], "model.name='resnet50' is not known: choose from efficientnet_b0"),
    (["experiment=dmo"], "there is no experiment=dmo: did you mean demo?"),
    (["data.batch_size=many"], "data.batch_size: Value 'many' of type 'str' could not be converted to Integer"),
    (["data.eval_crop=middle"], "data.eval_crop: Invalid value 'middle', expected one of [whole, center]"),
    (["data.eval_views=3"], "data.eval_views=3 must be 1, 2 or 4"),
    (["data.batch_size=0"], "data.batch_size=0 must be at least 1"),
    (["data.val_fraction=1.5"], "data.val_fraction=1.5 must be between 0 and 1"),
    (["data.classes=[cracks]"], "data.classes=['cracks'] must name at least two classes"),
    (["data.bucket=b"], "data.root and data.bucket both say where the images are"),
    (["data.classes=[a,b"], "cannot read 'data.classes=[a,b' as key=value"),
    (["data.root"], "cannot read 'data.root' as key=value: write data.root=... with a value"),
    (
        ["data.root=tyres, new/v1"],
        "data.root has several values: write 'data.root=\"tyres, new/v1\"' for one text, "
        "'data.root=[tyres, new/v1]' for a list, or -m for a run with each",
    ),
    (["data.root=//a:b@c,d"], """data.root has several values: write 'data.root="..."' for one text"""),
    (["data.root=x", "data.cache_dir=s3://b/c"], "data.cache_dir=s3://b/c is an address, and must be a place on this"),
]


@pytest.mark.parametrize(("overrides", "message"), MISTAKES, ids=[" ".join(item[0]) for item in MISTAKES])
def test_a_mistake_is_one_sentence(overrides: list[str], message: str, tmp_path: Path) -> None:
    done = run_script("train.py", "data.root=lake", *overrides, cwd=tmp_path)
    assert done.returncode == 1
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    assert message in lines[0]


def test_a_misspelt_key_in_an_experiment_file_names_the_file(tmp_path: Path) -> None:
    folder = tmp_path / "experiment"
    folder.mkdir()
    (folder / "mine.yaml").write_text("# @package _global_\ndata:\n  batchsize: 3\n")
    done = run_script("train.py", "data.root=lake", f"--config-dir={tmp_path}", "experiment=mine", cwd=tmp_path)
    assert done.returncode == 1
    expected = "unknown config key 'data.batchsize' (in experiment/mine): did you mean 'data.batch_size'?"
    assert done.stderr.strip() == f"error: {expected}"


def test_an_experiment_in_a_folder_of_one_s_own_is_found(tmp_path: Path) -> None:
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    (tmp_path / "mine" / "experiment" / "x.yaml").write_text("# @package _global_\ndata:\n  root: ours\nseed: 7\n")
    done = run_script("train.py", "--config-dir", "mine", "experiment=x", "--cfg", "job", cwd=tmp_path)
    shown = OmegaConf.create(done.stdout)
    assert (shown.data.root, shown.seed) == ("ours", 7), done.stderr


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    done = run_script("train.py", cwd=tmp_path)
    assert done.stderr.startswith("error: data.root is not set: give data.root=s3://bucket/prefix/version")
    done = run_script("predict.py", "input=x", cwd=tmp_path)
    assert done.stderr.startswith("error: model is not set")
    assert done.returncode == 1


def test_bucket_and_prefix_make_a_root() -> None:
    register_schemas()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", overrides=["data.bucket=plant", "data.prefix=v3"])
    assert to_train_config(cfg).data.root == "s3://plant/v3"


def test_help_and_config_errors_import_nothing_heavy(tmp_path: Path) -> None:
    """What makes them answer at once; seconds themselves depend on the machine."""
    command = [sys.executable, "-X", "importtime", str(PROJECT / "train.py"), "data.btch_size=1"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "hydra" in imported
    assert imported.isdisjoint({"torch", "lightning", "mlflow", "boto3", "pyarrow", "pandas"})
    assert run_script("train.py", "--help", cwd=tmp_path).returncode == 0
    assert run_script("train.py", "--cfg", "job", cwd=tmp_path).returncode == 0


def test_unknown_nodes_of_a_config_are_refused() -> None:
    register_schemas()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", overrides=["+data.augment.rotate=3", "data.root=lake"])
    for check in (check_config, to_train_config):  # on the command line, and from Python
        with pytest.raises(UserError, match=r"unknown config key 'data\.augment\.rotate'"):
            check(cfg)


@pytest.mark.parametrize(
    ("name", "check", "override", "nearest"),
    [
        ("train", to_train_config, "+data.btch_size=4", "data.batch_size"),
        ("audit", to_audit_config, "+outptu=x", "output"),
        ("predict", to_predict_config, "+s3.regon=x", "s3.region"),
        ("promote", to_promote_config, "+gate.margn=1", "gate.margin"),
    ],
)
def test_python_takes_no_unknown_key_in_silence(
    name: str, check: Callable[[Any], Any], override: str, nearest: str
) -> None:
    register_schemas()
    with initialize_config_dir(str(config_folder(name)), version_base="1.3"):
        cfg = compose(name, overrides=[override])
    with pytest.raises(
        UserError, match=f"unknown config key '{override[1:].partition('=')[0]}': did you mean '{nearest}'"
    ):
        check(cfg)


@pytest.mark.parametrize("given", [{"data": {"root": "lake"}}, OmegaConf.create({"data": {"root": "lake"}}), None])
@pytest.mark.parametrize(
    "check", [to_train_config, to_audit_config, to_predict_config, to_promote_config, to_watch_config]
)
def test_a_config_without_a_schema_is_refused(check: Callable[[Any], Any], given: Any) -> None:
    with pytest.raises(UserError, match="the config has no schema, so that a misspelt key would go unseen: let Hydra"):
        check(given)


def test_a_config_from_a_file_is_checked_once_it_has_its_schema() -> None:
    given = OmegaConf.create({"data": {"root": "lake"}, "trainer": {"max_epochs": 3}})
    assert to_train_config(OmegaConf.merge(OmegaConf.structured(TrainConfig), given)).trainer.max_epochs == 3


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("callbacks.checkpoint.mode=most", "callbacks.checkpoint.mode=most must be min or max"),
        ("callbacks.checkpoint.mode=min", "callbacks.checkpoint.mode=min takes the lowest val/f1 for the best"),
        ("callbacks.early_stopping.mode=min", "give callbacks.early_stopping.mode=max"),
        ("callbacks.early_stopping.patience=-1", "callbacks.early_stopping.patience=-1 must be 0 or more"),
        ("trainer.accumulate_grad_batches=0", "trainer.accumulate_grad_batches=0 must be at least 1"),
        ("trainer.gradient_clip_val=-1", "trainer.gradient_clip_val=-1.0 must be 0 or more"),
        ("trainer.precision=7", "trainer.precision=7 must be one of auto, 32-true, bf16-mixed"),
        ("model.logit_adjustment=-1", "model.logit_adjustment=-1.0 must be 0 or more"),
        ("model.logit_adjustment=inf", "model.logit_adjustment=inf must be 0 or more"),
        ("model.outliers=2", "model.outliers=2.0 must be in"),
        ("model.dropout=1", r"model.dropout=1.0 must be in \[0, 1\)"),
        ("model.optimizer.head_lr=-1", "model.optimizer.head_lr=-1.0 must be 0 or more"),
        ("model.optimizer.weight_decay=nan", "model.optimizer.weight_decay=nan must be 0 or more"),
        ("callbacks.checkpoint.monitor=val/loss", "callbacks.checkpoint.mode=max takes the highest val/loss"),
        ("callbacks.early_stopping.monitor=val/loss", "give callbacks.early_stopping.mode=min"),
        ("trainer.limit_val_batches=0", "trainer.limit_val_batches=0.0 must be more than 0"),
    ],
)
def test_what_no_training_can_use_is_refused(override: str, message: str) -> None:
    register_schemas()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", overrides=[override, "data.root=lake"])
    with pytest.raises(UserError, match=message):
        to_train_config(cfg)


LIKE_NUMBERS = [
    "2024_11",
    "2024_11_25",
    "1e3",
    "0x10",
    "on",
    "007",
    "1_000.5",
    "1.50",
    "true",
    "TRUE",
    "+5",
    ".5",
    "1:30",
]


def texts(name: str) -> Iterator[str]:
    """The keys of a command that take a text or several."""
    schema = OmegaConf.structured(SCHEMAS[name])
    for key in sorted(text_keys(SCHEMAS[name])):
        if not OmegaConf.is_dict(OmegaConf.select(schema, key)):
            yield key


@pytest.mark.parametrize("turn", first_of(range(len(LIKE_NUMBERS)), 4))
@pytest.mark.parametrize("name", SCHEMAS)
def test_a_text_stays_as_it_is_written(name: str, turn: int) -> None:
    """In all turns each key has each of these texts once."""
    register_schemas()
    given = dict(zip(texts(name), islice(cycle(LIKE_NUMBERS), turn, None), strict=False))
    written = {key: [value, "x"] if key == "data.classes" else value for key, value in given.items()}
    overrides = [f"{key}=[{value},x]" if key == "data.classes" else f"{key}={value}" for key, value in given.items()]
    with initialize_config_dir(str(config_folder(name)), version_base="1.3"):
        cfg = compose(name, overrides=overrides)
    assert {key: OmegaConf.select(cfg, key) for key in written} == written
    fewest = {"export": 3, "resend": 2, "select": 4, "rates": 4, "serve": 3}
    assert len(written) >= fewest.get(name, 5)  # not none by mistake


@pytest.mark.parametrize("value", LIKE_NUMBERS)
def test_a_text_in_a_file_stays_as_it_is_written(value: str, tmp_path: Path) -> None:
    register_schemas()
    (tmp_path / "experiment").mkdir()
    (tmp_path / "logger").mkdir()
    (tmp_path / "experiment" / "2024_11.yaml").write_text(
        f"# @package _global_\ndata:\n  root: {value}\n  classes:\n  - {value}\n  - x\n  folds: 1_0\nseed: 0x10\n"
    )
    (tmp_path / "logger" / "ours.yaml").write_text(f"defaults: [mlflow]\nrun_name: {value}\nsystem_metrics: off\n")
    with initialize_config_dir(str(CONF), version_base="1.3"):
        overrides = [f"hydra.searchpath=[file://{tmp_path}]", "logger=ours", "experiment=2024_11"]
        cfg = compose("train", overrides=overrides)
    assert (cfg.data.root, [*cfg.data.classes], cfg.logger.run_name) == (value, [value, "x"], value)
    assert (cfg.data.folds, cfg.seed, cfg.logger.system_metrics) == (10, 16, False)


HEAD = "# @package _global_\n"
SPOILT = {
    "- data.root=x": "{path} must have keys, each with its value",
    "3": "{path} must have keys, each with its value",
    "data.image_size=32": "{path} must have keys, each with its value",
    "data: [1]": "{path}, line 2: data must have keys below it, each with its value",
    "data:": "{path}, line 2: data must have keys below it",
    "seed: 1\nmodel: efficientnet_b0": "{path}, line 3: model must have keys below it",
    "callbacks:\n  extra:\n  - _target_: a.B": "{path}, line 4: callbacks.extra must have keys below it",
    "model:\n  loss: torch.nn.L1Loss": "{path}, line 3: model.loss must have keys below it",
    "model:\n  optimizer: sgd": "{path}, line 3: model.optimizer must have keys below it",
    "defaults:\n  model: x": "{path}, line 3: defaults must be a list, such as '- override /model: efficientnet_b2'",
    "defaults:\n- nope": "In 'experiment/mine': Could not load 'experiment/nope'",
    "defaults:\n- /model: efficientnet_b0": "or '- override /model: efficientnet_b0' in a file",
    "defaults:\n- override model: efficientnet_b0": "there is no group model here: write 'override /model: ...'",
    "data:\n  image_size: big": "data.image_size (in experiment/mine): Value 'big' of type 'str' could not be conv",
    "data:\n  batch_size: null": "data.batch_size (in experiment/mine): null is not possible here: give a value",
    "data:\n  classes: a": "data.classes (in experiment/mine): it takes a list, such as [a,b]",
    "data.image_size: 32": "'data.image_size' (in experiment/mine) is written with dots: write each part below",
}


@pytest.mark.parametrize("content", SPOILT)
def test_what_is_wrong_in_an_experiment_is_one_sentence_that_names_the_file(content: str, tmp_path: Path) -> None:
    path = _experiment(tmp_path, HEAD + content)
    said = _why_not(tmp_path, "experiment=mine")
    assert SPOILT[content].format(path=path) in said
    assert "\n" not in said and "Config search path" not in said and "object_type" not in said


@pytest.mark.parametrize(
    ("head", "sentence"),
    [
        ("# @package global\n", "has the line '# @package global': write the line '# @package _global_' as the first"),
        ("# @package _Global_\n", "has the line '# @package _Global_': write the line '# @package _global_' as the"),
        (
            "# @package _group_\n",
            "has the line '# @package _group_': write the line '# @package _global_' as the first",
        ),
        ("\ufeff" + HEAD, "byte order mark, which hides its first line: save it as UTF-8 without BOM, with the line"),
    ],
)
def test_a_misspelt_package_is_told_the_right_one(head: str, sentence: str, tmp_path: Path) -> None:
    path = _experiment(tmp_path, head + "data:\n  image_size: 32\n")
    said = _why_not(tmp_path, "experiment=mine")
    assert said.startswith(str(path)) and sentence in said


def _experiment(folder: Path, content: str) -> Path:
    path = folder / "experiment" / "mine.yaml"
    path.parent.mkdir()
    path.write_text(content, encoding="utf-8")
    return path


def _why_not(folder: Path, override: str) -> str:
    register_schemas()
    with initialize_config_dir(str(CONF), version_base="1.3"), pytest.raises(Exception) as caught:  # noqa: PT011
        check_config(compose("train", overrides=["data.root=x", f"hydra.searchpath=[file://{folder}]", override]))
    assert isinstance(caught.value, UserError) or is_mistake(caught.value)
    return str(caught.value) if isinstance(caught.value, UserError) else explain(caught.value)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("experiment=null", "a group of settings takes the name of one of them: leave it out"),
        ("+model=timm", "there are several values for model: write model=timm in the terminal, or"),
        ("data.batch_size=null", "data.batch_size: null is not possible here"),
        ("model.optimizer=sgd", "model.optimizer: it has keys below it, each with its value"),
        ("model.loss=mse", "model.loss: it has keys below it, each with its value"),
        ("model.loss._target_=a.B", "model.loss._target_: it is not there yet: write +model.loss._target_=..."),
        ("callbacks.extra=[]", "callbacks.extra: a list is given where keys are wanted"),
        ("data.classes=[null,a]", "data.classes[0]: null is not possible here"),
        ("data.classes.0=a", "a list takes all its values together, as in data.classes=[cracks,good]"),
        ("data.seed=1 data.folds=2", "is more than one key=value: give each by itself"),
        ("data.root = lake", "there are spaces round the key of 'data.root = lake': write data.root=lake"),
        (" data.root=ü", "there are spaces round the key of ' data.root=ü': write 'data.root=\"ü\"'"),
        ("-m", "-m is an option of the terminal, and no key=value"),
        ("--config-dir", "and no key=value: give hydra.searchpath=[file://FOLDER]"),
        ("", "an argument has no key: write key=value"),
        ("DATA.ROOT=x", "unknown config key 'DATA': did you mean 'data'?"),
        (
            "+callbacks.extra._target_=a.B",
            "callbacks.extra holds parts, each by a name of yours: give callbacks.extra.",
        ),
    ],
)
def test_what_is_wrong_in_an_override_is_said_in_words_of_its_own(override: str, sentence: str, tmp_path: Path) -> None:
    assert sentence in _why_not(tmp_path, override)


@pytest.mark.parametrize("group", ["experiment", "recipes", "experiment/ours"])
def test_an_experiment_of_one_s_own_folder_says_where_its_values_go(group: str, tmp_path: Path) -> None:
    """By --config-dir, which is a place to look in beside conf/; without the line, the file and the line are named."""
    register_schemas()
    (tmp_path / group).mkdir(parents=True)
    good, bad = tmp_path / group / "good.yaml", tmp_path / group / "bad.yaml"
    good.write_text("# @package _global_\ndata:\n  root: lake\nseed: 7\n")
    bad.write_text("data:\n  root: lake\n")
    choose = "experiment=" if group == "experiment" else f"+{group}="
    with initialize_config_dir(str(CONF), version_base="1.3"):
        found = [f"hydra.searchpath=[file://{tmp_path}]"]
        cfg = compose("train", overrides=[*found, f"{choose}good"])
        check_config(cfg)
        assert (cfg.data.root, cfg.seed, cfg.model.name) == ("lake", 7, "efficientnet_lite0")
        with pytest.raises(UserError, match=rf"^{bad} lacks the line '# @package _global_': write it as the first"):
            compose("train", overrides=[*found, f"{choose}bad"])


@pytest.mark.parametrize(
    ("written", "sentence"),
    [
        (b"data:\n\tseed: 3\n", r"it is no YAML in line 2 \(found character '\\t' that cannot start any token\)"),
        (b"data:\n  classes: [a\n", "it is no YAML in line 3"),
        (b"seed: 1\nseed: 2\n", "it is no YAML in line 2"),
        (b"# \xe9\nseed: 1\n", "it is not written in UTF-8"),
        (b"- seed\n", "must have keys"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(written: bytes, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_bytes(written)
    done = run_script("train.py", "--config-dir", str(tmp_path), "experiment=mine", cwd=tmp_path)
    assert done.returncode == 1
    assert re.fullmatch(f"error: {tmp_path}/experiment/mine.yaml.* {sentence}.*\n", done.stderr), done.stderr


def test_configs_of_one_file_do_not_share_their_values_and_follow_the_file(tmp_path: Path) -> None:
    """Hydra composes again and again in a process: a file is parsed once, but for what has been written since."""
    register_schemas()
    (tmp_path / "experiment").mkdir()
    file = tmp_path / "experiment" / "mine.yaml"
    file.write_text("# @package _global_\ndata:\n  classes: [good, bad]\n")
    overrides = [f"hydra.searchpath=[file://{tmp_path}]", "experiment=mine"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        first = compose("train", overrides=overrides)
        first.data.classes.append("third")
        first.model.optimizer.head_lr = 7.0
        first.callbacks.checkpoint.monitor = "val/loss"
        second = compose("train", overrides=overrides)
        assert second.data.classes == ["good", "bad"]
        assert second.model.optimizer.head_lr == 3e-3 and second.callbacks.checkpoint.monitor == "val/f1"
        file.write_text(file.read_text().replace("bad", "cut"))
        assert compose("train", overrides=overrides).data.classes == ["good", "cut"]


def test_what_is_no_text_is_read_as_before() -> None:
    register_schemas()
    overrides = [
        "data.root=null", "seed=1_000", "data.near_copies=false", "trainer.devices=[0,1]", "data.cache_gb=1e2",
        "+data={prefix:2024_11,folds:1_0}", "logger.run_name='null'",
    ]  # fmt: skip
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", overrides=overrides)
    assert (cfg.data.root, cfg.seed, cfg.data.near_copies, cfg.data.cache_gb) == (None, 1000, False, 100.0)
    assert (cfg.data.prefix, cfg.data.folds, [*cfg.trainer.devices]) == ("2024_11", 10, [0, 1])
    assert cfg.logger.run_name == "null"


def test_texts_stay_as_they_are_written_in_a_sweep() -> None:
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser

    register_schemas()
    given = ["data.root=2024_11", "logger.run_name=choice(2024_11_25,007)", "data.prefix=1e3,true", "seed=range(0,2)"]
    parse = OverridesParser.create().parse_overrides
    (jobs,) = BasicSweeper.split_arguments(parse(given), None)
    assert len(jobs) == 8
    read = [{one.key_or_group: one.value() for one in parse(list(job))} for job in jobs]
    assert {one["data.root"] for one in read} == {"2024_11"}
    assert {one["logger.run_name"] for one in read} == {"2024_11_25", "007"}
    assert {one["data.prefix"] for one in read} == {"1e3", "true"}
    assert {one["seed"] for one in read} == {0, 1}


@pytest.mark.parametrize("name", ["plant/tyres", "it's", "a:b", 'a"b', "", " ", "..", "x" * 300, "a\nb", "a?b", "a#b"])
@pytest.mark.parametrize("command", ["train", "promote"])
def test_a_model_name_that_mlflow_refuses_is_refused_at_once(command: str, name: str) -> None:
    register_schemas()
    with initialize_config_dir(str(config_folder(command)), version_base="1.3"):
        cfg = compose(command)
    key = "logger.registered_model" if command == "train" else "model"
    OmegaConf.update(cfg, key, name)
    if command == "train":
        cfg.data.root = "lake"
    with pytest.raises(UserError, match=rf"^{key}.*(holds|is|has) .*|model is not set"):
        check_config(cfg)


@pytest.mark.parametrize(("key", "name"), [("experiment", ""), ("experiment", "x" * 600), ("run_name", "x" * 300)])
def test_a_name_that_mlflow_refuses_is_refused_at_once(key: str, name: str) -> None:
    register_schemas()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", overrides=["data.root=lake"])
    cfg.logger[key] = name
    with pytest.raises(UserError, match=rf"^logger\.{key}='"):
        check_config(cfg)
