"""Credentials in settings and in messages."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import ExperimentError
from orchestrator.loading import load_experiment
from orchestrator.run import main
from orchestrator.secrets import is_secret, redact

ADDRESSES = {
    "http://ann:hunter2hunter2@tracking.example:5000/x": "http://***@tracking.example:5000/x",
    "postgresql+psycopg2://ann:hunter2hunter2@db/mlflow": "postgresql+psycopg2://***@db/mlflow",
    "s3://AKIA123:hunter2/hunter2+@bucket/runs": "s3://***@bucket/runs",
    "mysql://ann:hunter2@hunter2@db/x": "mysql://***@db/x",
    "https://hf_hunter2hunter2@huggingface.co/a": "https://***@huggingface.co/a",
    "s3://bucket/x?access_key=AKIA&secret_key=hunter2hunter2&region=eu": "s3://bucket/x?access_key=***&secret_key=***&region=eu",
    "https://x.blob.core/y?sv=1&sig=hunter2hunter2": "https://x.blob.core/y?sv=1&sig=***",
    "https://b.s3/x?X-Amz-Credential=hunter2&X-Amz-Date=1": "https://b.s3/x?X-Amz-Credential=***&X-Amz-Date=***",
}
PLAIN = [
    *(
        "sqlite:///mlflow.db",
        "http://127.0.0.1:5000",
        "postgresql://ann@db/mlflow",
        "s3://bucket/runs?region=eu",
    ),
    *(
        "http://host:5000/a@b",
        "runs",
        "./model",
        "gpt2",
        "c_attn",
        "hdfs://ann@name:8020/runs",
        "a:b@c",
        "file:///x",
    ),
]


@pytest.mark.parametrize("address", ADDRESSES)
def test_credentials_in_addresses_are_replaced(address: str) -> None:
    assert redact(f"no: '{address}' of it") == f"no: '{ADDRESSES[address]}' of it"


@pytest.mark.parametrize("text", PLAIN)
def test_what_has_none_stays(text: str) -> None:
    assert redact(f"got {text}, sorry") == f"got {text}, sorry"


@given(
    user=st.text("abcXYZ09-_.", min_size=1),
    password=st.text(
        st.characters(codec="utf-8", categories=("L", "N", "P", "S"), exclude_characters="'\""), min_size=4
    ),
    scheme=st.sampled_from(["http", "https", "s3", "postgresql", "mysql+pymysql"]),
)
def test_no_password_is_left(user: str, password: str, scheme: str) -> None:
    if not password.isdecimal():
        password = f"!{password}~"
        assert password not in redact(f"{scheme}://{user}:{password}@host/path is wrong")


def test_secrets_of_the_environment_are_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_hunter2hunter2")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter3/hunter3")
    monkeypatch.setenv("SHORT_TOKEN", "runs")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/home/ann/.ray/auth_token")
    text = "401 with hf_hunter2hunter2 and hunter3/hunter3; see /home/ann/.ray/auth_token in runs"
    assert redact(text) == "401 with *** and ***; see /home/ann/.ray/auth_token in runs"


@pytest.mark.parametrize(
    ("secret", "names"),
    [
        (True, "HF_TOKEN PGPASSWORD AZURE_STORAGE_KEY AZURE_STORAGE_CONNECTION_STRING MYSQL_PWD SSHPASS"),
        (
            True,
            "AWS_SECRET_ACCESS_KEY WANDB_API_KEY MLFLOW_TRACKING_PASSWORD OPENAI_APIKEY AWS_ACCESS_KEY_ID",
        ),
        (False, "PWD OLDPWD PATH HOME COMPASS TOKENIZERS_PARALLELISM KEYBOARD RAY_AUTH_TOKEN_PATH"),
    ],
)
def test_secrets_are_known_by_the_names_of_their_variables(secret: bool, names: str) -> None:
    assert [is_secret(name) for name in names.split()] == [secret] * len(names.split())


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("logging.mlflow=http://ann:hunter2hunter2@host", "MLFLOW_TRACKING_PASSWORD"),
        ("storage=s3://AKIA:hunter2hunter2@bucket/runs", "AWS_SECRET_ACCESS_KEY"),
        ("model.path=https://ann:hunter2hunter2@host/model", "HF_TOKEN"),
        ("data.train=https://host/x.csv?token=hunter2hunter2", "HF_TOKEN"),
        ("data.columns=[a, 'https://ann:hunter2hunter2@host/x']", "HF_TOKEN"),
        ("logging.wandb=hunter2hunter2", "WANDB_API_KEY"),
        ("methods.lora.target_modules=[hunter2hunter2]", "the environment"),
    ],
)
def test_a_setting_with_a_credential_is_refused(
    override: str, says: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "hunter2hunter2")
    assert main(["--set", override, "--dry-run"]) == 2
    said = capfd.readouterr().err
    key = override.partition("=")[0]
    assert said.startswith(f"built-in experiment: {key}: ")
    assert "has a password or token" in said or "holds credentials" in said  # of a storage's URI
    assert says in said
    assert "hunter2" not in said


@pytest.mark.parametrize(
    "override",
    [
        "logging=http://ann:hunter2hunter2@host",
        "http://ann:hunter2hunter2@host",
        "search.trials=http://ann:hunter2hunter2@host",
        "logging.mlfow=http://ann:hunter2hunter2@host",
    ],
)
def test_a_message_about_something_else_does_not_show_one(override: str, tmp_path: Path) -> None:
    with pytest.raises(ExperimentError) as refused:
        load_experiment(None, [override])
    assert "hunter2" not in str(refused.value)
