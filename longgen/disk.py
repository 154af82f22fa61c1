"""Files that are whole or not there: written beside their name, forced to the disk, moved onto it; and who may write where.

A file that is being written is called `.NAME.PROCESS.partial`, so that no two processes write to one.
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
NO_FOLDER_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.EPERM, errno.EBADF}  # of systems that have none for folders
NO_LOCKS = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL}


def partial_of(path: Path) -> Path:
    """Where this process writes what is to become `path`."""
    return path.with_name(f".{path.name}.{os.getpid()}.partial")


def clear_partials(path: Path) -> None:
    """Removes what processes that were killed left of `path`; for the one that holds its lock."""
    head = f".{path.name}."
    with contextlib.suppress(OSError):
        for name in os.listdir(path.parent):
            if name.startswith(head) and name.endswith(".partial") and name[len(head) : -len(".partial")].isdigit():
                path.with_name(name).unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Forces the names in `folder` to the disk, where the system can. Raises OSError."""
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
    """Moves the whole file `partial` onto `path`: its bytes reach the disk before the name, and then the name. Raises OSError."""
    with partial.open("rb+") as file:
        os.fsync(file.fileno())
    os.replace(partial, path)
    sync_folder(path.parent)


def replace_file(path: Path, write: Callable[[Path], None]) -> None:
    """Has `write` make a file beside `path`, and moves it onto `path`. Raises LonggenError where it cannot be written."""
    partial = partial_of(path)
    try:
        write(partial)
        replace(partial, path)
    except OSError as error:
        raise LonggenError(f"{path} could not be written: {error}", expected="a folder with room that may be written to",
                           hint="free some space, then the same command again, with --resume if it has that") from None  # fmt: skip
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def make_folder(folder: Path) -> None:
    """Makes `folder`, and those above it, where they are not there. Raises LonggenError."""
    missing = [one for one in (folder, *folder.parents) if not os.path.lexists(one)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for one in reversed(missing):
            sync_folder(one.parent)
    except OSError as error:
        raise LonggenError(f"the folder {folder} cannot be made: {error.strerror}", expected="a place that may be written to",
                           hint="give another --output") from None  # fmt: skip


# ---- records: JSON with a checksum -----------------------------------------------------------------------------------------


def save_text(path: Path, text: str) -> None:
    """Writes UTF-8; what it cannot encode, as parts of some file names, becomes `?`."""
    replace_file(path, lambda partial: _write_text(partial, text))


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", errors="replace")


def save_json(path: Path, content: dict[str, Any]) -> None:
    save_text(path, json.dumps(content, indent=2) + "\n")


def save_record(path: Path, content: dict[str, Any]) -> None:
    """Writes `content` so that `load_record` sees any change."""
    plain = json.loads(json.dumps({key: value for key, value in content.items() if key != "checksum"}))
    save_json(path, plain | {"checksum": _checksum(plain)})


def load_record(path: Path, unchecked: Callable[[dict[str, Any]], bool] = lambda record: False) -> dict[str, Any]:
    """What `save_record` wrote. unchecked: tells what longgen wrote before there were checksums.

    Raises MissingError where it is not there, and LonggenError where it is not as it was written.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MissingError(f"{path} is not there", expected="a file that longgen wrote", hint="check the path") from None
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(path, str(error)) from None
    if not isinstance(record, dict):
        raise _damaged(path, "it holds no record")
    kept = record.pop("checksum", None)
    if kept != _checksum(record) and not (kept is None and unchecked(record)):
        raise _damaged(path, "its content does not fit its checksum")
    return record


def _checksum(content: dict[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(content).encode(), digest_size=32).hexdigest()


def _damaged(path: Path, reason: str) -> LonggenError:
    return LonggenError(f"{path} is damaged: {reason}", expected="the file as longgen wrote it, changed by nobody",
                        hint="remove it, or start again with --overwrite")  # fmt: skip


def file_hash(path: Path) -> str:
    """A hash of the bytes of `path`."""
    digest = hashlib.blake2b(digest_size=32)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


# ---- who may write where -----------------------------------------------------------------------------------------------------


def what_stands_at(path: Path) -> str | None:
    """What is under the name `path`, in words; None where there is nothing. Raises UsageError for a name that cannot be."""
    try:
        mode = path.lstat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UsageError(f"{_short(path)} cannot be written: {reason}", expected="a name that the file system takes",
                         hint="give another --output") from None  # fmt: skip
    if stat.S_ISLNK(mode):
        return "a symbolic link"
    if stat.S_ISDIR(mode):
        return "a folder"
    return "a file" if stat.S_ISREG(mode) else "no ordinary file"


def check_new(path: Path, overwrite: bool, option: str = "--output", own: bool = False) -> None:
    """Refuses a `path` under which something stands that is not to be replaced.

    own: it is a file that longgen wrote for the very same purpose. Folders and special files are refused in any case.
    Raises UsageError, and what `check_writable` does.
    """
    ffmpeg.check_output(str(path), option)
    there = what_stands_at(path)
    if there in ("a folder", "no ordinary file"):
        raise UsageError(f"{option} {path} is {there}, which is never replaced", expected="the name of a file",
                         hint="give another name")  # fmt: skip
    if there is not None and not overwrite and not (there == "a file" and own):
        raise UsageError(f"{option} {path} is there already: {there}", expected="a name that is free, or --overwrite",
                         hint="give another name; --overwrite replaces what is there")  # fmt: skip
    check_writable(path, option)


def check_writable(path: Path, option: str = "--output") -> None:
    """Raises LonggenError where `path` could not be written; creates nothing."""
    try:
        folder = path.absolute().parent
        while not folder.exists():
            folder = folder.parent
        whole = folder.is_dir()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UsageError(f"{_short(path)} cannot be written: {reason}", expected="a name that the file system takes",
                         hint=f"give another {option}") from None  # fmt: skip
    if not whole or not os.access(folder, os.W_OK | os.X_OK):
        raise LonggenError(f"{path} cannot be written: {folder} is {'not to be written to' if whole else 'no folder'}",
                           expected="a place in a folder that may be written to", hint=f"give another {option}")  # fmt: skip


def _short(path: Path) -> str:
    text = str(path)
    return text if len(text) <= 200 else f"{text[:100]}…{text[-60:]}"


@contextlib.contextmanager
def held(lock: Path, what: str) -> Iterator[None]:
    """Holds the lock file `lock`, of which a second process is told that `what` is being written; may be nested.

    The system holds the lock, so that it is free again after kill -9; the file goes when it is released, and so does a folder
    that is then empty. Where a file system has no such locks, the file's being there is the lock, and filelock tells by the
    process that is written in it whether its maker is still alive on this machine.
    """
    from filelock import FileLock, SoftFileLock, Timeout

    kind: type[FileLock] | type[SoftFileLock] = FileLock
    for _ in range(100):
        make_folder(lock.parent)
        there = os.path.lexists(lock)
        taken = kind(str(lock), timeout=0, is_singleton=True)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # where filelock goes over to the file's being there, as said above
                taken.acquire()
        except Timeout:
            raise LonggenError(f"{what} is being written by another process{_holder(lock)}", expected="one process at a time",
                               hint="wait until it is done, or give another --output") from None  # fmt: skip
        except FileNotFoundError:
            continue  # another process has just released it, and removed the folder
        except (OSError, NotImplementedError) as error:
            if kind is SoftFileLock or (isinstance(error, OSError) and error.errno not in NO_LOCKS):
                raise LonggenError(f"{lock} cannot be written: {error}", expected="a folder with room that may be written to",
                                   hint="give another --output") from None  # fmt: skip
            kind = SoftFileLock
            with contextlib.suppress(OSError):
                if not there and lock.stat().st_size == 0:  # what the first kind left, which the second would take for a lock
                    lock.unlink()
            continue
        if not lock.exists():  # removed by the one who held it, between our opening and our locking
            taken.release(force=True)
            continue
        break
    else:
        raise LonggenError(f"{lock} cannot be locked", expected="a folder that nobody else removes", hint="try again")
    try:
        yield
    except BrokenPipeError:  # the reader of our own words has gone
        raise
    except OSError as error:
        raise LonggenError(f"the system refused what {what} needs: {error}", expected="room, permission and free file descriptors",
                           hint="see to it, then the same command again, with --resume if it has that") from error  # fmt: skip
    finally:
        last = getattr(taken, "lock_counter", 1) <= 1
        with contextlib.suppress(OSError):
            if last and os.name != "nt":  # before it is released: afterwards it may be another's
                lock.unlink(missing_ok=True)
        taken.release()
        if last:
            with contextlib.suppress(OSError):
                if os.name == "nt":
                    lock.unlink(missing_ok=True)
                lock.parent.rmdir()  # only where it is empty


def _holder(lock: Path) -> str:
    """Which process holds `lock`, where Linux tells."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        inode = f":{lock.stat().st_ino}"
        for line in Path("/proc/locks").read_text(encoding="ascii").splitlines():
            fields = line.split()
            if fields[1] == "FLOCK" and fields[5].endswith(inode):
                return f", number {fields[4]}"
    return ""
