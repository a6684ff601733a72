"""Opening files of cells: what is no file of cells, or claims more than it holds, is refused first."""

import errno
import re
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.errors import DataError, MachineError
from core.files import open_file
from core.wording import first_line, size

if TYPE_CHECKING:
    import h5py

#: How files that are mistaken for .h5ad begin -> what they are, and what to do.
_BEGINNINGS = {
    b"\x1f\x8b": "compressed by gzip; unpack it first (gunzip {name})",
    b"BZh": "compressed by bzip2; unpack it first (bunzip2 {name})",
    b"\xfd7zXZ": "compressed by xz; unpack it first (unxz {name})",
    b"\x28\xb5\x2f\xfd": "compressed by zstd; unpack it first (unzstd {name})",
    b"PK": "a zip archive; unpack it first (unzip {name})",
    b"RDX": "an R object; convert it in R, with zellkonverter::writeH5AD",
}
#: Filters of HDF5 that h5py has not, by their registered number.
_FILTERS = {
    307: "bzip2",
    32_000: "lzf",
    32_001: "blosc",
    32_004: "lz4",
    32_008: "bitshuffle",
    32_013: "zfp",
    32_015: "zstd",
    32_017: "sz",
    32_024: "sz3",
    32_026: "blosc2",
}
#: Errors of a file system that has no locks.
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EIO, errno.EINVAL}
#: An array up to this size is never refused, and one is as large as its file at most times this:
#: gzip, HDF5's usual compression, reaches 1,032.
_SMALL_BYTES, _MOST_COMPRESSED = 2**26, 1_100
#: Reads after which text that may be too long is taken to be so.
_MOST_READS = 1_000
#: Bytes of one item of an array; text of a fixed length longer than this is no label.
_MOST_ITEM_BYTES = 2**20

#: What to do about a file that refers to others.
_WHOLE = "write the cells into one file by AnnData"


def check_path(path: Path) -> None:
    """Check that a path is a folder, or a file that can be opened; no pipe or device is waited for."""
    try:
        if not path.is_dir():
            open_file(path).close()
    except (FileNotFoundError, ValueError):  # the latter of a name with a zero byte
        raise DataError(f"{path}: no such file; check the path") from None
    except PermissionError:
        raise DataError(_no_permission(path)) from None
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; name a file of cells") from None


def open_hdf5(path: Path) -> "h5py.File":
    """Open an HDF5 file for reading, without a lock where the file system has none.

    DataError if the file cannot be opened, is no HDF5 file, refers to other files, or has arrays that are
    larger than it can hold; MachineError if its compression needs the package hdf5plugin.
    """
    import h5py

    try:
        with open_file(path) as stream:
            beginning = stream.read(8)
        if not h5py.is_hdf5(path):
            raise DataError(f"{path}: not an h5ad file: {_what_it_is(beginning, path)}")
        file = hdf5_file(path)
    except PermissionError:
        raise DataError(_no_permission(path)) from None
    except OSError as error:
        raise DataError(f"{path}: {_cause(error)}") from error
    if (fault := _fault_inside(file, path.stat().st_size)) is not None:
        file.close()
        raise DataError(f"{path}: {fault}")
    return file


def hdf5_file(path: Path, mode: str = "r") -> "h5py.File":
    """Open as h5py does, without a lock where the file system has none; raises h5py's errors."""
    import h5py

    try:
        return h5py.File(path, mode)
    except OSError as error:
        if error.errno not in _NO_LOCKS or "unable to lock" not in str(error):
            raise
    return h5py.File(path, mode, locking=False)


def _no_permission(path: Path) -> str:
    return f"{path}: no permission to read this file; change its mode or owner"


def _what_it_is(beginning: bytes, path: Path) -> str:
    if not beginning:
        return "it is empty; copy or write it again"
    for start, what in _BEGINNINGS.items():
        if beginning.startswith(start):
            return f"it is {what.format(name=path.name)}"
    is_text = all(byte >= 32 or byte in b"\t\r\n" for byte in beginning)
    what = "it is text" if is_text else "its content is not HDF5"
    return f"{what}; tfx reads AnnData files (adata.write_h5ad)"


def _cause(error: OSError) -> str:
    text = str(error)
    if error.errno == errno.EAGAIN or "already open for write" in text:
        return (
            "another program has this file open for writing; close it there (or, if that program "
            "was killed, run h5clear -s on the file), then try again"
        )
    sizes = re.search(r"truncated file: eof = (\d+).*stored_eof = (\d+)", text)
    if sizes is not None:
        there, whole = (f"{int(number):,}" for number in sizes.groups())
        return f"truncated: {there} of its {whole} bytes are there; copy it again"
    return f"damaged or truncated h5ad file ({first_line(error)}); copy it again"


def _fault_inside(file: "h5py.File", n_bytes: int) -> str | None:
    """Look at every link and array, and follow no link: what must not be read, in words."""
    import h5py

    codes: dict[int, str] = {}  # filter -> an array that it compresses

    def look(name: bytes, link: Any) -> str | None:  # noqa: ANN401 (h5py's LinkInfo)
        where = f"'{name.decode(errors='replace')}'"
        if link.type == h5py.h5l.TYPE_SOFT:
            return None  # within the file: its target is looked at itself
        if link.type != h5py.h5l.TYPE_HARD:
            return f"{where} is a link to another file, which is not followed; {_WHOLE}"
        try:
            array = h5py.h5o.open(file.id, name)
            if not isinstance(array, h5py.h5d.DatasetID):
                return None
            created = array.get_create_plist()
            filters = [created.get_filter(number) for number in range(created.get_nfilters())]
            is_elsewhere = created.get_external_count() > 0
            is_elsewhere = is_elsewhere or created.get_layout() == h5py.h5d.VIRTUAL
            n_items, item = array.get_space().get_simple_extent_npoints(), array.get_type()
            claimed = n_items * item.get_size()
            # Counting what is stored takes a look at every piece: not for what the file may well hold.
            is_large = claimed > max(_SMALL_BYTES, 8 * n_bytes)
            stored = array.get_storage_size() if is_large else n_bytes
            codes.update(dict.fromkeys((code for code, *_ in filters), where))
            fault = oversize(where, array.shape, item.get_size(), claimed, stored)
            if is_elsewhere:
                fault = f"the values of {where} are in another file, which is not read; {_WHOLE}"
            elif fault is None and _repeats_text(array, n_bytes):
                fault = f"the texts of {where} are longer than the file; write it again by AnnData"
        except (KeyError, OSError, RuntimeError, ValueError, TypeError):
            return None  # damaged: reading it says how
        return fault

    try:
        fault: str | None = file.id.links.visit(look, info=True)
    except (KeyError, OSError, RuntimeError):
        return None  # damaged: reading it says how
    for code, where in codes.items():
        if fault is None and not _has_filter(code):
            name = file.filename
            file.close()
            raise MachineError(
                f"{name}: {where} is compressed by {_FILTERS.get(code, f'filter {code}')}, which "
                f"h5py cannot read alone; install hdf5plugin (pip install hdf5plugin), and try again"
            )
    return fault


def _has_filter(code: int) -> bool:
    """Whether arrays compressed by a filter can be read; hdf5plugin, if it is installed, brings more."""
    import h5py

    if not h5py.h5z.filter_avail(code):
        with suppress(ImportError):
            import hdf5plugin  # noqa: F401 (80 ms; importing it is its use)
    return h5py.h5z.filter_avail(code)


def _repeats_text(array: "h5py.h5d.DatasetID", n_bytes: int) -> bool:
    """Whether texts of any length are longer than their file: many items can refer to one text."""
    import h5py

    n_items = array.get_space().get_simple_extent_npoints()
    text = h5py.check_string_dtype(array.dtype)
    if text is None or text.length is not None:  # None, of any length
        return False
    # A text that a writer stores takes 16 bytes and its own: a larger file has room for all of them.
    if array.rank != 1 or 16 * n_items < n_bytes or n_bytes > _SMALL_BYTES:
        return False
    texts, total = h5py.Dataset(array), 0
    at_once = max(_SMALL_BYTES // n_bytes, 1)
    if n_items > _MOST_READS * at_once:
        return True
    for first in range(0, n_items, at_once):
        total += sum(map(len, texts[first : first + at_once]))
        if total > n_bytes:
            return True
    return False


def oversize(
    where: str, shape: tuple[int, ...], item_bytes: int, claimed: int, stored: int
) -> str | None:
    """Say what is wrong with an array that claims more bytes than its stored ones can hold, or None."""
    if claimed > max(_SMALL_BYTES, _MOST_COMPRESSED * stored):
        form = " x ".join(f"{n:,}" for n in shape)
        return (
            f"{where} claims {form} values ({size(claimed)}), but {size(stored)} are stored; "
            f"the file is damaged or made to mislead"
        )
    if shape and item_bytes > _MOST_ITEM_BYTES:
        return f"{where} has items of {size(item_bytes)} each, which are no labels or values; shorten them"
    return None
