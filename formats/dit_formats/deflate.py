"""Deflating and inflating chunks as HDF5 stores them; done here because that is several times faster, and bounded."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

try:
    from isal import isal_zlib
except ImportError:  # no wheel for this machine
    isal_zlib = None
try:
    import deflate as libdeflate
except ImportError:
    libdeflate = None

SMALL = 1 << 13
"""Bytes below which zlib is as quick, and gives always the same stream; isal now and then gives another, also right."""


def deflated(values: bytes, itemsize: int) -> bytes:
    """The bytes of an array of little-endian items, shuffled (all first bytes, all second bytes, ...) and deflated.

    Any HDF5 inflates it. By isal it costs 1 to 8 % of size against zlib's level 1, and an eighth of the time. Values
    of float16 tensors, which it packs worst, are left to libdeflate: a tenth smaller, in 60 % of zlib's time. Other
    threads run meanwhile.
    """
    planes = np.ascontiguousarray(np.frombuffer(values, "u1").reshape(-1, itemsize).T)
    if len(values) < SMALL:
        return zlib.compress(planes, 1)
    if libdeflate is not None and itemsize == 4 and planes[1].any() and not planes[0].any():
        return libdeflate.zlib_compress(planes, 2)
    return isal_zlib.compress(planes, 2) if isal_zlib else zlib.compress(planes, 1)


def inflated(stored: bytes, size: int) -> bytes | bytearray | None:
    """The bytes that were deflated, still shuffled; None if they are damaged or not of this size.

    No more than `size` is ever allocated. It takes two fifths of zlib's time.
    """
    if libdeflate is None:
        return _inflated_by_zlib(stored, size)
    try:
        content = libdeflate.zlib_decompress(stored, size)
    except libdeflate.DeflateError:
        return None
    return content if len(content) == size else None


def _inflated_by_zlib(stored: bytes, size: int) -> bytes | None:
    inflater = zlib.decompressobj()
    try:
        content = inflater.decompress(stored, size + 1)
    except zlib.error:
        return None
    return content if len(content) == size and inflater.eof else None


def unshuffled(content: bytes, dtype: np.dtype[Any]) -> NDArray[Any]:
    """The items whose bytes these are: all first bytes, all second bytes, ..."""
    planes = np.frombuffer(content, "u1").reshape(dtype.itemsize, -1)
    if dtype == np.float32:
        return _four_bytes(planes).view(dtype)
    if dtype.itemsize > 8:
        return np.ascontiguousarray(planes.T).view(dtype).ravel()
    items = np.empty(planes.shape[::-1], "u1")
    for place, plane in enumerate(planes):
        items[:, place] = plane
    return items.view(dtype).ravel()


def _four_bytes(planes: NDArray[np.uint8]) -> NDArray[np.uint32]:
    """Items of four bytes, shifted into place: faster than to put every fourth byte, and more so for bfloat16, of which
    the two low bytes are 0."""
    high = planes[3].astype("u2")
    high <<= 8
    high |= planes[2]
    items = high.astype("u4")
    items <<= 16
    if planes[:2].max(initial=0):
        low = planes[1].astype("u2")
        low <<= 8
        low |= planes[0]
        items |= low
    return items
