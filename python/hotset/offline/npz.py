"""Archives of NumPy arrays (`*.npz`), read as hostile input and written whole or not at all.

What `numpy.savez` writes is read, less what is dangerous: no pickled objects, no compression, no array larger than its
bytes in the file. So nothing is allocated that the file does not really hold.
"""

from __future__ import annotations

import io
import os
import re
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import numpy as np

from ..errors import Error, error_text

_MAGIC = b"\x93NUMPY"
_MAX_HEADER = 1024
_MAX_ENTRIES = 1 << 17
_HEADER = re.compile(
    r"\{'descr': '(?P<type>[<|][iuf][1248]|<U\d{1,8})', 'fortran_order': False, "
    r"'shape': \((?P<shape>(?:\d{1,15},? ?)*)\), \}\s*"
)


def read_arrays(path: str | os.PathLike[str], where: str) -> dict[str, np.ndarray]:
    """Reads all arrays of an archive.

    Args:
        path: the file.
        where: the part that complains, for messages.

    Raises:
        Error: there is no such file, or it is not such an archive: truncated, changed by hand, compressed, with
            objects, with more than its own bytes.
    """
    name = os.fspath(path)
    try:
        with zipfile.ZipFile(name) as archive:
            entries = archive.infolist()
            names = [entry.filename for entry in entries]
            if len(entries) > _MAX_ENTRIES or len(set(names)) < len(names):
                _refuse(where, name, "distinct entries", f"{len(entries)}, some of them twice or too many")
            # Entries that share bytes could make a small file large.
            if sum(entry.file_size for entry in entries) > os.path.getsize(name):
                _refuse(where, name, "entries that fit into the file", "more bytes than the file has")
            return {entry.filename.removesuffix(".npy"): _read_entry(archive, entry, where, name) for entry in entries}
    except (OSError, EOFError, zipfile.BadZipFile, NotImplementedError, RuntimeError, ValueError) as error:
        if isinstance(error, FileNotFoundError):
            raise Error(error_text(where, f"file {name!r}", "a file", "none", "check the path")) from None
        _refuse(where, name, "an archive of NumPy arrays", str(error) or type(error).__name__)


def _read_entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, where: str, path: str) -> np.ndarray:
    what = f"{path}, entry {entry.filename!r}"
    if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size or entry.flag_bits & 1:
        _refuse(where, what, "bytes as they are", "compressed or encrypted ones")
    with archive.open(entry) as file:
        start = file.read(12)
        is_long = start[6:7] == b"\x02"
        n_header = int.from_bytes(start[8 : 12 if is_long else 10], "little")
        if len(start) < 12 or start[:6] != _MAGIC or start[6:8] not in (b"\x01\x00", b"\x02\x00"):
            _refuse(where, what, "a NumPy array", "other bytes")
        if n_header > _MAX_HEADER:
            _refuse(where, what, f"a header of at most {_MAX_HEADER} bytes", str(n_header))
        header = start[12 if is_long else 10 :] + file.read(n_header - (0 if is_long else 2))
        match = _HEADER.fullmatch(header.decode("latin-1"))
        if not match:
            _refuse(where, what, "plain numbers or text in C order", repr(header[:100]))
        dtype = np.dtype(match["type"])
        shape = tuple(int(size) for size in match["shape"].replace(",", " ").split())
        n_bytes = dtype.itemsize
        for size in shape:
            n_bytes *= size
        if n_bytes != entry.file_size - (12 if is_long else 10) - n_header:
            _refuse(where, what, f"{n_bytes} bytes of data for shape {shape}", "another number of bytes")
        data = file.read(n_bytes + 1)  # to the end, which checks the sum of the entry
    if len(data) != n_bytes:
        _refuse(where, what, f"{n_bytes} bytes of data", str(len(data)))
    return np.frombuffer(data, dtype).reshape(shape)


def _refuse(where: str, what: str, expected: str, got: str) -> NoReturn:
    raise Error(error_text(where, what, expected, got, "make the file again"))


def write_arrays(path: str | os.PathLike[str], arrays: Mapping[str, object]) -> None:
    """Writes an archive; equal arrays give equal bytes. The file appears when it is whole, and replaces an older one.

    Raises:
        Error: the file cannot be written.
    """
    with whole_file(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, value in arrays.items():
            array = np.ascontiguousarray(value).reshape(np.shape(value))  # ascontiguousarray makes scalars lists
            entry = zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0))
            with archive.open(entry, "w", force_zip64=True) as to:
                header = io.BytesIO()
                np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(array))
                to.write(header.getvalue())
                to.write(array.tobytes() if array.ndim == 0 or array.size == 0 else memoryview(array).cast("B"))


@contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[io.BufferedWriter]:
    """Opens a file beside `path` for writing and renames it to `path` when the block ends well.

    Raises:
        Error: it cannot be written. Then, and after any other error, `path` is what it was.
    """
    target = Path(path)
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)  # mkstemp makes files for the owner alone
        os.replace(temporary, target)
        temporary = None
    except OSError as error:
        raise Error(error_text("write", f"file {os.fspath(path)!r}", "a place to write to", error.strerror or error,
                               "choose another place")) from None  # fmt: skip
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
