"""Atomic writes (a reader sees a complete file or none), checksummed JSON records, output checks and lock files.

A file is written as `.NAME.PROCESS.partial`, unique to the process, then synced and renamed.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import stat
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from longgen import ffmpeg
from longgen.errors import LonggenError, MissingError, UsageError

LOCK = ".lock"
NO_FOLDER_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.EPERM, errno.EBADF}  # where folders cannot be synced
NO_LOCKS = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL}


def partial_of(path: Path) -> Path:
    """The temporary file that becomes `path`."""
    return path.with_name(f".{path.name}.{os.getpid()}.partial")


def clear_partials(path: Path) -> None:
    """Removes temporary files of `path` left by killed processes. The caller must hold the lock."""
    head = f".{path.name}."
    with contextlib.suppress(OSError):
        for name in os.listdir(path.parent):
            if name.startswith(head) and name.endswith(".partial") and name[len(head) : -len(".partial")].isdigit():
                path.with_name(name).unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Syncs the directory entries of `folder` to the disk, where supported. Raises OSError."""
    if os.name == "nt":
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in NO_FOLDER_SYNC:
            raise


def replace(partial: Path, path: Path) -> None:
    """Atomically renames the complete file `partial` to `path`, syncing first its bytes, then its name. Raises OSError."""
    with partial.open("rb+") as file:
        os.fsync(file.fileno())
    os.replace(partial, path)
    sync_folder(path.parent)


def replace_file(path: Path, write: Callable[[Path], None]) -> None:
    """Atomic write: `write` creates a temporary file, which then replaces `path`. Raises LonggenError if it cannot be written."""
    partial = partial_of(path)
    try:
        write(partial)
        replace(partial, path)
    except OSError as error:
        raise LonggenError(f"{path} could not be written: {error}", expected="a writable folder with free space",
                           hint="free some space, then repeat the command, with --resume if it has that") from None  # fmt: skip
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def make_folder(folder: Path) -> None:
    """Creates `folder` and its missing parents. Raises LonggenError."""
    missing = [path for path in (folder, *folder.parents) if not os.path.lexists(path)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path in reversed(missing):
            sync_folder(path.parent)
    except OSError as error:
        raise LonggenError(f"the folder {folder} cannot be created: {error.strerror}", expected="a writable place",
                           hint="give another --output") from None  # fmt: skip


def save_text(path: Path, text: str) -> None:
    """Writes UTF-8; what it cannot encode, as parts of some file names, becomes `?`."""
    replace_file(path, lambda partial: _write_text(partial, text))


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", errors="replace")


def save_json(path: Path, content: dict[str, Any]) -> None:
    save_text(path, json.dumps(content, indent=2) + "\n")


def save_record(path: Path, content: dict[str, Any]) -> None:
    """Writes `content` with a checksum, which `load_record` verifies."""
    plain = json.loads(json.dumps({key: value for key, value in content.items() if key != "checksum"}))
    save_json(path, plain | {"checksum": _checksum(plain)})


def load_record(path: Path, unchecked: Callable[[dict[str, Any]], bool] = lambda record: False) -> dict[str, Any]:
    """The content that `save_record` wrote. unchecked: recognises records of old versions, which have no checksum.

    Raises MissingError if there is no such file, and LonggenError if it is damaged or was edited.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MissingError(f"{path} is not there", expected="a file written by longgen", hint="check the path") from None
    except (OSError, ValueError, RecursionError) as error:
        raise damaged(path, str(error)) from None
    if not isinstance(record, dict):
        raise damaged(path, "it is not a record")
    checksum = record.pop("checksum", None)
    if checksum != _checksum(record) and not (checksum is None and unchecked(record)):
        raise damaged(path, "its checksum does not match")
    return record


def _checksum(content: dict[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(content).encode(), digest_size=32).hexdigest()


def damaged(path: Path, reason: str) -> LonggenError:
    return LonggenError(f"{path} is damaged: {reason}", expected="the file as longgen wrote it, unedited",
                        hint="remove it, or start again with --overwrite")  # fmt: skip


def file_hash(path: Path) -> str:
    """BLAKE2b hash of the file, in hexadecimal digits."""
    digest = hashlib.blake2b(digest_size=32)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def what_stands_at(path: Path) -> str | None:
    """The kind of file at `path`, in words; None if there is none. Raises UsageError for an invalid name."""
    try:
        mode = path.lstat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise _invalid_name(path, error) from None
    if stat.S_ISLNK(mode):
        return "a symbolic link"
    if stat.S_ISDIR(mode):
        return "a folder"
    return "a file" if stat.S_ISREG(mode) else "no ordinary file"


def check_new(path: Path, overwrite: bool, option: str = "--output", own: bool = False) -> None:
    """Refuses a `path` that exists and must not be replaced.

    own: it is a file that longgen wrote for the same purpose, which may be. Folders and special files are always refused.
    Raises UsageError, and the errors of `check_writable`.
    """
    ffmpeg.check_output(str(path), option)
    existing = what_stands_at(path)
    if existing in ("a folder", "no ordinary file"):
        raise UsageError(f"{option} {path} is {existing}, which is never replaced", expected="the name of a file",
                         hint="give another name")  # fmt: skip
    if existing is not None and not overwrite and not (existing == "a file" and own):
        raise UsageError(f"{option} {path} already exists: {existing}", expected="a free name, or --overwrite",
                         hint="give another name; --overwrite replaces it")  # fmt: skip
    check_writable(path, option)


def check_writable(path: Path, option: str = "--output") -> None:
    """Raises LonggenError if `path` could not be written; creates nothing."""
    try:
        folder = path.absolute().parent
        while not folder.exists():
            folder = folder.parent
        is_folder = folder.is_dir()
    except (OSError, ValueError) as error:
        raise _invalid_name(path, error, option) from None
    if not is_folder or not os.access(folder, os.W_OK | os.X_OK):
        raise LonggenError(f"{path} cannot be written: {folder} is {'not writable' if is_folder else 'not a folder'}",
                           expected="a path in a writable folder", hint=f"give another {option}")  # fmt: skip


def shortened(name: str) -> str:
    """`name` for a message: of a very long one, its beginning and its end."""
    return name if len(name) <= 200 else f"{name[:100]}…{name[-60:]}"


def _invalid_name(path: Path, error: OSError | ValueError, option: str = "--output") -> UsageError:
    reason = error.strerror if isinstance(error, OSError) else str(error)
    return UsageError(f"{shortened(str(path))} cannot be written: {reason}", hint=f"give another {option}",
                      expected="a name that the file system accepts")  # fmt: skip


@contextlib.contextmanager
def held(lock: Path, what: str) -> Iterator[None]:
    """Holds the lock file `lock`; another process gets an error that `what` is being written. Reentrant.

    It is a lock of the operating system, so kill -9 releases it; on release the file is removed, and so is its folder if empty.
    On a file system without locks, the existence of the file is the lock, and filelock tells by the process id in it whether its
    owner is still alive on this machine.
    """
    from filelock import FileLock, SoftFileLock, Timeout

    kind: type[FileLock] | type[SoftFileLock] = FileLock
    for _ in range(100):
        make_folder(lock.parent)
        existed = os.path.lexists(lock)
        file_lock = kind(str(lock), timeout=0, is_singleton=True)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # when filelock falls back to the existence of the file
                file_lock.acquire()
        except Timeout:
            raise LonggenError(f"{what} is being written by another process{_holder(lock)}", expected="one process at a time",
                               hint="wait until it is done, or give another --output") from None  # fmt: skip
        except FileNotFoundError:
            continue  # another process has just released it, and removed the folder
        except (OSError, NotImplementedError) as error:
            if kind is SoftFileLock or (isinstance(error, OSError) and error.errno not in NO_LOCKS):
                raise LonggenError(f"{lock} cannot be written: {error}", expected="a writable folder with free space",
                                   hint="give another --output") from None  # fmt: skip
            kind = SoftFileLock
            with contextlib.suppress(OSError):
                if not existed and lock.stat().st_size == 0:  # left by FileLock; SoftFileLock would take it for a lock
                    lock.unlink()
            continue
        if not lock.exists():  # its holder removed it between our opening and our locking
            file_lock.release(force=True)
            continue
        break
    else:
        raise LonggenError(f"{lock} cannot be locked", expected="a folder that no other process removes", hint="try again")
    try:
        yield
    except BrokenPipeError:  # the reader of our output is gone
        raise
    except OSError as error:
        raise LonggenError(f"writing {what} failed: {error}", expected="free space, permission and free file descriptors",
                           hint="fix that, then repeat the command, with --resume if it has that") from error  # fmt: skip
    finally:
        last = getattr(file_lock, "lock_counter", 1) <= 1
        with contextlib.suppress(OSError):
            if last and os.name != "nt":  # before the release: afterwards it may belong to another process
                lock.unlink(missing_ok=True)
        file_lock.release()
        if last:
            with contextlib.suppress(OSError):
                if os.name == "nt":
                    lock.unlink(missing_ok=True)
                lock.parent.rmdir()  # only where it is empty


def _holder(lock: Path) -> str:
    """The process that holds `lock`, if Linux tells."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        inode = f":{lock.stat().st_ino}"
        for line in Path("/proc/locks").read_text(encoding="ascii").splitlines():
            fields = line.split()
            if fields[1] == "FLOCK" and fields[5].endswith(inode):
                return f", number {fields[4]}"
    return ""
