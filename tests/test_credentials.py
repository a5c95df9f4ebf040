"""Settings of AWS that lead nowhere: files, roles and commands that are missing or wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.test_store import message_of
from tyre_lightning.demo.server import S3Server

# What the AWS chain is led to: variables, the config file, and what the sentence says. A command prints a secret.
CHAIN: dict[str, tuple[dict[str, str], str, str]] = {
    "no such profile": ({"AWS_PROFILE": "factory"}, "", "the AWS profile 'factory' is not in the AWS config"),
    "no such command": ({}, "credential_process = /no/such --key hidden", "/no/such, which the AWS config or a"),
    "a command that fails": ({}, "credential_process = {tmp}/fail", "credentials cannot be loaded"),
    "a command that talks": ({}, "credential_process = {tmp}/talk", "credential_process of the AWS config"),
    "a command that lists": ({}, "credential_process = {tmp}/list", "credential_process of the AWS config"),
    "no such token": (
        {"AWS_WEB_IDENTITY_TOKEN_FILE": "/no/token", "AWS_ROLE_ARN": "arn:aws:iam::123456789012:role/x"},
        "", "/no/token, which the AWS config or a variable names, cannot be used: No such file or directory",
    ),
    "no such role": ({}, "role_arn = x\nsource_profile = gone", 'source_profile "gone" referenced in the profile'),
    "no such source": ({}, "role_arn = x\ncredential_source = Moon", 'The credential source "Moon"'),
    "no such session": ({}, "sso_session = s", 'the "s" sso_session configuration does not exist'),
    "no config": ({}, "]nonsense[", "config cannot be read: mend it, or set AWS_CONFIG_FILE"),
    "no region": ({"AWS_DEFAULT_REGION": "eu west"}, "", "'eu west' is no region: check s3.region, AWS_REGION and"),
    "no mode": ({"AWS_DEFAULTS_MODE": "hidden"}, "", "check the s3 settings"),
    "a foreign host": ({"AWS_CONTAINER_CREDENTIALS_FULL_URI": "http://hidden/x"}, "", "check the s3 settings"),
    "half a key": ({"AWS_ACCESS_KEY_ID": "hidden"}, "", "credentials cannot be loaded"),
}  # fmt: skip


@pytest.mark.parametrize("name", CHAIN)
def test_whatever_the_credential_chain_raises_is_one_sentence(
    aws_env: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    variables, config, sentence = CHAIN[name]
    for script, line in {"fail": "echo hidden >&2; exit 3", "talk": "echo hidden", "list": "echo '[1]'"}.items():
        (tmp_path / script).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / script).chmod(0o755)
    (tmp_path / "config").write_text(f"[default]\n{config.format(tmp=tmp_path)}\n")
    for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(variable)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    message = message_of("s3://bucket/v1")
    assert sentence in message and message.startswith("cannot list 's3://bucket/v1/train/'")
    assert "\n" not in message and "hidden" not in message
