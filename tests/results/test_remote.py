"""Result sets on S3: a real server, reached through a proxy that can be told to fail."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import fsspec
import pandas as pd
import pytest
from made_up import make_up
from s3_server import Proxy

from results import load
from results.remote import RemoteDirectory, StorageError, below, check_uri, name_and_parent, patiently
from results.report.__main__ import main as report
from results.show import main as show


@pytest.fixture
def uri(s3: Proxy, tmp_path: Path) -> str:
    return f"s3://bucket/{tmp_path.name}"


@pytest.fixture(params=["s3", "file", "fsspec"])
def directory(request: pytest.FixtureRequest, tmp_path: Path) -> RemoteDirectory:
    if request.param == "s3":
        request.getfixturevalue("s3")
        return RemoteDirectory(f"s3://bucket/{tmp_path.name}")
    if request.param == "file":
        return RemoteDirectory(f"file://{tmp_path}/there")
    return RemoteDirectory(f"memory://{tmp_path}")


def test_keys_that_lead_elsewhere_are_left_out(tmp_path: Path) -> None:
    """As an object store may have them, in a run that somebody has sent."""
    directory = RemoteDirectory(f"memory://{tmp_path}")
    directory.write("journal/a.json", b"1")
    store = fsspec.filesystem("memory").store
    for name in ("journal/../../../../b", "../b", "journal//b", "./b"):
        store[f"{tmp_path}/{name}"] = store[f"{tmp_path}/journal/a.json"]
    assert list(directory.files()) == ["journal/a.json"]
    directory.get(tmp_path / "deep" / "in" / "here")
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["a.json"]


def test_files_come_back_as_they_were_and_go(directory: RemoteDirectory, tmp_path: Path) -> None:
    here = tmp_path / "here"
    (here / "deep" / "er").mkdir(parents=True)
    (here / "a.bin").write_bytes(bytes(range(256)) * 50_000)  # more than one part of an upload
    (here / "deep" / "er" / "b.txt").write_text("b")
    (here / "deep" / "empty").write_text("")
    assert not directory.files()
    assert not directory.directories()
    directory.put(here)
    assert directory.files() == {"a.bin": 12_800_000, "deep/er/b.txt": 1, "deep/empty": 0}
    assert directory.directories() == ["deep"]
    assert directory.child("deep").files() == {"er/b.txt": 1, "empty": 0}
    directory.child("deep").get(tmp_path / "back")
    assert (tmp_path / "back" / "er" / "b.txt").read_text() == "b"
    directory.download("a.bin", tmp_path / "back" / "a.bin")
    assert (tmp_path / "back" / "a.bin").read_bytes() == (here / "a.bin").read_bytes()
    assert not list((tmp_path / "back").glob(".*"))
    directory.write("deep/empty", b"no more")
    assert directory.read("deep/empty") == b"no more"
    assert directory.has("deep/empty")
    assert not directory.has("deep")
    with pytest.raises(FileNotFoundError):
        directory.read("nothing")
    with pytest.raises(FileNotFoundError):
        directory.download("nothing", tmp_path / "nothing")
    directory.remove_directory("deep")
    directory.remove("a.bin")
    directory.remove("nothing")
    directory.remove_directory("nothing")
    assert not directory.files()
    directory.probe()
    assert not directory.files()


def test_a_small_file_is_one_request(uri: str, s3: Proxy) -> None:
    directory = RemoteDirectory(uri)
    s3.seen.clear()
    directory.write("journal/a.json", b"{}")
    assert [method for method, _ in s3.seen] == ["PUT"]


@pytest.mark.parametrize("newer", [b"[1, 2, 3, 4]", b"[]"])
def test_a_file_that_is_replaced_while_it_is_read_is_whole(uri: str, s3: Proxy, newer: bytes) -> None:
    """Between the request for its size and that for its content."""
    directory = RemoteDirectory(uri)
    directory.write("a.json", b"[1, 2]")
    replacing = iter([directory.write])

    def replace(method: str, path: str) -> None:
        if method == "GET" and path.endswith("a.json"):
            for write in replacing:
                write("a.json", newer)

    s3.before = replace
    assert directory.read("a.json") == newer
    assert not list(replacing), "it was replaced"


def test_uris_are_put_together_and_taken_apart() -> None:
    assert below("s3://bucket/a/", "b") == "s3://bucket/a/b"
    assert below("s3://bucket", "b") == "s3://bucket/b"
    assert below("s3://bucket/a?region=x", "b/c") == "s3://bucket/a/b/c?region=x"
    assert name_and_parent("s3://bucket/a/b/") == ("b", "s3://bucket/a")
    assert name_and_parent("s3://bucket/b?region=x") == ("b", "s3://bucket?region=x")


@pytest.mark.parametrize(
    "uri",
    [
        "s3://planted-id:planted-secret@bucket/a",
        "s3://planted-secret@bucket/a",
        "abfs://container:planted-secret@account.dfs.core.windows.net/a",
        "abfs://container@account.dfs.core.windows.net/a?client_secret=planted-secret",
        "s3://bucket/a?access_key=planted-secret",
    ],
)
def test_credentials_are_refused_and_not_repeated(uri: str) -> None:
    for use in (check_uri, RemoteDirectory, load):
        with pytest.raises(StorageError, match="put them in the environment") as refused:
            use(uri)
        assert "planted" not in str(refused.value)
    check_uri("abfs://container@account.dfs.core.windows.net/a")


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("nosuch://bucket/a", "no filesystem is called nosuch; expected one of pyarrow's"),
        ("gcs+s://bucket/a", "no filesystem is called"),
        ("s3://", "expected a URI such as s3://bucket/prefix"),
        ("s3://bucket/a?nonsense=1", "nonsense"),
        ("s3://[", "not a URI"),
        ("gcsfs://", "expected a URI"),
        ("dropbox://a/b", "requires .*dropboxdrivefs"),  # the package that fsspec takes for it
    ],
)
def test_what_is_no_storage_gets_one_message(uri: str, message: str) -> None:
    with pytest.raises(StorageError, match=message) as refused:
        RemoteDirectory(uri)
    assert len(str(refused.value).splitlines()) == 1


def test_a_bucket_that_is_not_there_and_a_server_that_is_not(
    s3: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(StorageError, match=r"s3://no-such-bucket/a: cannot be written: .*NO_SUCH_BUCKET"):
        RemoteDirectory("s3://no-such-bucket/a").probe()
    s3.mode = "fail"
    with pytest.raises(StorageError, match="cannot be written"):
        RemoteDirectory("s3://bucket/a").probe()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StorageError, match=r"cannot be read: .*connect"):
        load("s3://bucket/a")


@pytest.mark.parametrize("mode", ["fail", "stall"])
def test_an_outage_is_waited_for_and_told_once(uri: str, s3: Proxy, tmp_path: Path, mode: str) -> None:
    directory = RemoteDirectory(uri)
    told: list[BaseException | None] = []

    def report(error: BaseException | None) -> None:
        told.append(error)
        s3.mode = "pass"

    (tmp_path / "a").write_bytes(b"1")
    s3.mode, s3.delay = mode, 30.0
    patiently(lambda: directory.upload(tmp_path / "a", "a"), 60, report)
    assert s3.refused >= 2, "the filesystem itself tries again, too"
    assert isinstance(told[0], OSError)
    assert told[1:] == [None]
    assert directory.read("a") == b"1"


def test_an_outage_that_does_not_end_is_an_error(uri: str, s3: Proxy) -> None:
    directory = RemoteDirectory(uri)
    s3.mode = "fail"
    with pytest.raises(OSError, match="AWS Error"):
        patiently(lambda: directory.write("a", b"2"), 0.1)


def test_result_sets_are_loaded_shown_and_reported_from_s3(
    uri: str,
    s3: Proxy,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("one", "two"):
        RemoteDirectory(f"{uri}/{name}").put(make_up(name, examples=20).save(tmp_path / name))
    local = load(tmp_path)
    for path in (
        uri,
        f"{uri}/",
        f"{uri}/*",
        [f"{uri}/one", f"{uri}/two"],
        f"s3://bucket/{tmp_path.name[:-1]}*/*",
    ):
        loaded = load(path)
        for name, frame in vars(local).items():
            pd.testing.assert_frame_equal(getattr(loaded, name), frame)
    assert set(load(f"{uri}/o*").trials.experiment) == {"one"}
    assert len(pd.read_parquet(f"{uri}/one/trials.parquet")) == 21
    with pytest.raises(FileNotFoundError, match=r"three: no result set"):
        load(f"{uri}/three")

    monkeypatch.chdir(tmp_path)
    assert show([f"{uri}/one"]) == 0
    assert "highest test accuracy" in capsys.readouterr().out
    assert report([f"{uri}/one"]) == 0
    assert capsys.readouterr().out.strip() == f"{uri}/one/report/index.html"
    run = RemoteDirectory(f"{uri}/one")
    assert b"<html" in run.read("report/index.html")
    assert len(run.child("report/figures").files()) == 4
    assert report([f"{uri}/one", f"{uri}/two"]) == 0
    assert capsys.readouterr().out.strip() == "report/index.html"
    assert (tmp_path / "report" / "index.html").is_file()
    run.write("trials.parquet", b"not Parquet")
    for command in (show, report):
        assert command([f"{uri}/one"]) == 2
        assert f"{uri}/one/trials.parquet: not a whole Parquet table" in capsys.readouterr().err
    assert show(["s3://no-such-bucket/one"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize("module", ["results.show", "results.report"])
def test_modules_are_commands(module: str, uri: str) -> None:
    done = subprocess.run([sys.executable, "-m", module, f"{uri}/none"], capture_output=True, text=True)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    assert f"{uri}/none: no result set" in done.stderr
