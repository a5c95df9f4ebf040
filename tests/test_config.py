"""Every shipped config composes and holds; every mistake in one is a single sentence with a way out."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from tests.conftest import PROJECT, run_script
from tyre_lightning.command_line import check_config
from tyre_lightning.config import (
    BACKBONES,
    known_keys,
    register_schemas,
    to_audit_config,
    to_predict_config,
    to_promote_config,
    to_train_config,
)
from tyre_lightning.errors import UserError

CONF = PROJECT / "conf"
OWN = ("predict", "promote")  # commands with a folder of their own
GROUPS = sorted(folder.name for folder in CONF.iterdir() if folder.is_dir() and folder.name not in OWN)
FILES = [(group, path.stem) for group in GROUPS for path in sorted((CONF / group).glob("*.yaml"))]


@pytest.mark.parametrize(("group", "name"), FILES)
def test_every_shipped_config_composes_and_is_valid(group: str, name: str) -> None:
    register_schemas()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", overrides=[f"{group}={name}", "data.root=lake"])
    check_config(cfg)
    config = to_train_config(cfg)
    if group == "model" and name != "default":
        assert config.model.name == name


def test_there_is_a_config_for_every_backbone() -> None:
    assert {name for group, name in FILES if group == "model"} == {*BACKBONES, "default"}


@pytest.mark.parametrize(
    ("name", "overrides"), [("predict", ["model=models:/tyres/1", "input=folder"]), ("promote", ["model=tyres"])]
)
def test_configs_of_commands_with_a_folder_of_their_own_compose(name: str, overrides: list[str]) -> None:
    register_schemas()
    with initialize_config_dir(str(CONF / name), version_base="1.3"):
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
    with initialize_config_dir(str(CONF / "promote"), version_base="1.3"):
        cfg = compose("promote", overrides=[override])
    with pytest.raises(UserError, match=message):
        check_config(cfg)


@pytest.mark.parametrize("name", ["train", "audit", *OWN])
def test_yaml_files_and_schema_agree_on_every_default(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python callers and the command line must do alike."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)  # MLflow sets it where a test uses MLflow
    register_schemas()
    with initialize_config_dir(str(CONF / name if name in OWN else CONF), version_base="1.3"):
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
    with initialize_config_dir(str(CONF / name if name in OWN else CONF), version_base="1.3"):
        cfg = compose(name, overrides=[override])
    with pytest.raises(
        UserError, match=f"unknown config key '{override[1:].partition('=')[0]}': did you mean '{nearest}'"
    ):
        check(cfg)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("callbacks.checkpoint.mode=most", "callbacks.checkpoint.mode=most must be min or max"),
        ("callbacks.checkpoint.monitor=val/loss", "callbacks.checkpoint.mode=max takes the highest val/loss"),
        ("callbacks.early_stopping.monitor=val/loss", "give callbacks.early_stopping.mode=min"),
        ("trainer.limit_val_batches=0", "trainer.limit_val_batches=0.0 must be more than 0"),
    ],
)
def test_an_epoch_that_cannot_be_chosen_is_refused(override: str, message: str) -> None:
    register_schemas()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", overrides=[override, "data.root=lake"])
    with pytest.raises(UserError, match=message):
        to_train_config(cfg)
