"""Directories at URIs: on S3, Google Cloud Storage or any other filesystem of pyarrow or fsspec."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import SplitResult, parse_qsl, urlsplit
from uuid import uuid4

if TYPE_CHECKING:
    from pyarrow.fs import FileInfo, FileSystem

T = TypeVar("T")

WITHOUT_DIRECTORIES = ("s3", "gcs")
"""Filesystems without directories: creating one would only leave an empty object."""

SECRETS = ("key", "secret", "token", "password", "sig")
"""A query parameter whose name contains one of these holds a secret."""

PART_BYTES = 16 << 20
"""Most bytes of a file in memory while it is copied."""

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
"""Seconds before a failed operation is retried; the pause doubles each time."""


class StorageError(ValueError):
    """A storage URI is invalid or cannot be used; the message says which, and why."""


def is_uri(place: str) -> bool:
    """Say whether a text is a URI rather than a path."""
    return "://" in place


def check_uri(uri: str) -> None:
    """Refuse a URI that names no directory, or that has credentials, which would end up in every log.

    Raises:
        StorageError: its message does not repeat the credentials.
    """
    parts = _split(uri)
    # Azure's URIs have CONTAINER@ACCOUNT, with the secret, if any, after a colon.
    user = "" if parts.scheme in ("abfs", "abfss") and ":" not in parts.netloc else parts.netloc
    hidden = [name for name, _ in parse_qsl(parts.query) if any(part in name.lower() for part in SECRETS)]
    if "@" in user or hidden:
        raise StorageError(
            f"{parts.scheme}://...: holds credentials; expected none in a URI: put them in the environment"
            " (such as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY) or the provider's own files"
        )
    if not (parts.netloc + parts.path).strip("/") or parts.fragment:
        raise StorageError(f"{uri}: expected a URI such as s3://bucket/prefix")


def below(uri: str, name: str) -> str:
    """Return the URI of ``name`` in a directory; a query stays at the end."""
    parts = _split(uri)
    return parts._replace(path=f"{parts.path.rstrip('/')}/{name}").geturl()


def name_and_parent(uri: str) -> tuple[str, str]:
    """Split a URI into the last part of its path and the URI of the parent directory."""
    parts = _split(uri)
    parent, _, name = parts.path.rstrip("/").rpartition("/")
    return name, parts._replace(path=parent).geturl()


def _split(uri: str) -> SplitResult:
    try:
        return urlsplit(uri)
    except ValueError as error:
        raise StorageError(f"not a URI: {error}") from None


class RemoteDirectory:
    """A directory named by a URI. It exists as soon as something is put into it.

    Arguments:
        uri: its scheme is one that ``pyarrow.fs.FileSystem.from_uri`` knows, or one of fsspec's, with or
            without ``fsspec+`` before it.

    Raises:
        StorageError: if no filesystem supports the URI.
    """

    def __init__(self, uri: str) -> None:
        check_uri(uri)
        self.uri = uri.rstrip("/")
        self._filesystem, path = _open(uri)
        self._path = path.rstrip("/")

    def __str__(self) -> str:
        return self.uri

    def child(self, name: str) -> RemoteDirectory:
        """Return the subdirectory ``name``, such as ``journal`` or ``states/lora-003``."""
        child = object.__new__(RemoteDirectory)
        child.uri, child._filesystem = below(self.uri, name), self._filesystem
        child._path = f"{self._path}/{name}"
        return child

    def read(self, name: str) -> bytes:
        """Read a file as it was at one moment, even while it is being replaced.

        Raises:
            FileNotFoundError: if there is none.
        """
        path = f"{self._path}/{name}"
        while True:
            # The size is requested from S3 first: a file that has grown by the time it is read comes cut off.
            with self._filesystem.open_input_file(path) as stream:
                size, content = stream.size(), stream.read()
            if len(content) == size == self._filesystem.get_file_info(path).size:
                return content

    def write(self, name: str, content: bytes) -> None:
        """Write a file as a whole: a reader sees the old content or all of the new."""
        path = f"{self._path}/{name}"
        self._make_parent(path)
        with self._filesystem.open_output_stream(path) as stream:
            stream.write(content)

    def upload(self, local: Path, name: str) -> None:
        """Upload a file."""
        # Not with pyarrow's copy_files, which hides an error in sending the last part.
        path = f"{self._path}/{name}"
        with open(local, "rb") as file:
            part = file.read(PART_BYTES)
            self._make_parent(path)
            with self._filesystem.open_output_stream(path) as stream:
                while part:
                    stream.write(part)
                    part = file.read(PART_BYTES)

    def download(self, name: str, local: Path) -> None:
        """Download a file. The local file appears once it is complete.

        Raises:
            FileNotFoundError: if there is none.
        """
        with self._filesystem.open_input_file(f"{self._path}/{name}") as stream:
            local.parent.mkdir(parents=True, exist_ok=True)
            unfinished = local.with_name(f".{local.name}.part")
            with open(unfinished, "wb") as file:
                shutil.copyfileobj(stream, file, PART_BYTES)
            unfinished.replace(local)

    def put(self, directory: Path) -> None:
        """Upload all files of a directory, replacing those of the same names."""
        for file in sorted(directory.rglob("*")):
            if file.is_file():
                self.upload(file, file.relative_to(directory).as_posix())

    def get(self, directory: Path) -> None:
        """Download all files into a local directory."""
        for name in self.files():
            self.download(name, directory / name)

    def files(self) -> dict[str, int]:
        """Return the names and sizes in bytes of all files, including those in subdirectories.

        Keys such as ``a/../../b``, which no directory has, are left out: a copy would be written elsewhere.
        """
        names = {
            info.path.removeprefix(self._path).lstrip("/"): info.size
            for info in self._infos(recursive=True)
            if info.is_file
        }
        return {name: size for name, size in names.items() if not {"", ".", ".."} & set(name.split("/"))}

    def directories(self) -> list[str]:
        """Return the sorted names of the subdirectories."""
        from pyarrow.fs import FileType

        return sorted(info.base_name for info in self._infos() if info.type == FileType.Directory)

    def exists(self) -> bool:
        """Say whether the directory has anything in it."""
        return bool(self._infos())

    def has(self, name: str) -> bool:
        """Say whether there is a file of that name."""
        return bool(self._filesystem.get_file_info(f"{self._path}/{name}").is_file)

    def glob(self, pattern: str) -> Iterator[RemoteDirectory]:
        """Find directories below this one by a pattern such as ``*`` or ``gpt2-*/runs``, sorted."""
        first, _, rest = pattern.strip("/").partition("/")
        for name in self.directories():
            if fnmatchcase(name, first):
                found = self.child(name)
                yield from found.glob(rest) if rest else (found,)

    def remove(self, name: str) -> None:
        """Remove a file, if there is one."""
        with suppress(FileNotFoundError):
            self._filesystem.delete_file(f"{self._path}/{name}")

    def remove_directory(self, name: str) -> None:
        """Remove a directory and everything in it, if there is one."""
        with suppress(FileNotFoundError):
            self._filesystem.delete_dir(f"{self._path}/{name}")

    def probe(self) -> None:
        """Check that files can be written, by writing one and removing it again.

        Raises:
            StorageError: saying why they cannot.
        """
        name = f".probe-{uuid4().hex}"
        try:
            self.write(name, b"")
            self.remove(name)
        except Exception as error:
            raise StorageError(f"{self.uri}: cannot be written: {reason(error)}") from None

    def _make_parent(self, path: str) -> None:
        if self._filesystem.type_name not in WITHOUT_DIRECTORIES:
            self._filesystem.create_dir(str(PurePosixPath(path).parent), recursive=True)

    def _infos(self, recursive: bool = False) -> list[FileInfo]:
        from pyarrow.fs import FileSelector

        selector = FileSelector(self._path, allow_not_found=True, recursive=recursive)
        return list(self._filesystem.get_file_info(selector))


def _open(uri: str) -> tuple[FileSystem, str]:
    """Find a URI's filesystem and the path on it as Ray does: among pyarrow's own, then among fsspec's."""
    import pyarrow as pa
    from pyarrow.fs import FileSystem

    try:
        filesystem, path = FileSystem.from_uri(uri)
    except pa.ArrowInvalid as error:
        if "Unrecognized filesystem type" in str(error):
            return _open_fsspec(uri)
        raise StorageError(f"{uri}: {reason(error)}") from None
    except Exception as error:
        raise StorageError(f"{uri}: {reason(error)}") from None
    return (_impatient(filesystem) if filesystem.type_name == "s3" else filesystem), path


def _impatient(filesystem: FileSystem) -> FileSystem:
    """Return the same S3 filesystem, but failing within half a minute if it gets no answer.

    Made from a URI, it would retry silently for several minutes.
    """
    from pyarrow.fs import AwsStandardS3RetryStrategy, S3FileSystem

    _, (options,) = filesystem.__reduce__()  # everything from the URI and the environment
    changed = {
        "request_timeout": 5,
        "connect_timeout": 5,
        "retry_strategy": AwsStandardS3RetryStrategy(max_attempts=2),
        "allow_delayed_open": True,  # so that a small file takes one request, not three
    }
    return S3FileSystem(**{**options, **changed})


def _open_fsspec(uri: str) -> tuple[FileSystem, str]:
    import fsspec
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    scheme = urlsplit(uri).scheme
    known = "expected one of pyarrow's (s3, gs, abfs, hdfs) or fsspec's"
    if scheme not in fsspec.available_protocols():
        raise StorageError(f"{uri}: no filesystem is called {scheme}; {known}")
    try:
        filesystem, path = fsspec.url_to_fs(uri)
    except Exception as error:  # such as an ImportError that names the missing package
        raise StorageError(f"{uri}: {reason(error)}") from None
    return PyFileSystem(FSSpecHandler(filesystem)), path


def reason(error: BaseException) -> str:
    """Return the first line of what an error says, or its type's name if it says nothing."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0]


def patiently(
    operation: Callable[[], T],
    seconds: float,
    report: Callable[[BaseException | None], object] = lambda error: None,
) -> T:
    """Retry an operation while the storage answers with errors.

    Arguments:
        operation: may be called any number of times.
        seconds: how long to retry.
        report: is called with the first error, and with None once the operation works again.

    Raises:
        OSError: if it still fails after that time.
        FileNotFoundError: at once, since retrying would not help.
    """
    deadline, pause, has_failed = time.monotonic() + seconds, FIRST_PAUSE, False
    while True:
        try:
            outcome = operation()
        except FileNotFoundError:
            raise
        except Exception as error:
            if time.monotonic() + pause > deadline:
                raise OSError(reason(error)) from error
            if not has_failed:
                report(error)
            has_failed = True
        else:
            if has_failed:
                report(None)
            return outcome
        time.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE)
