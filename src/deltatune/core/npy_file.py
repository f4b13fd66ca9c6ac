"""NPY files: one array of points. The header is matched, not evaluated as numpy does; no object is unpickled."""

import re
from pathlib import Path

import numpy as np

from deltatune.core.errors import DataError
from deltatune.core.mesh import Mesh, check_count

START = re.compile(rb"\x93NUMPY(?:\x01\x00(?P<short>..)|[\x02\x03]\x00(?P<long>....))", re.DOTALL)
"""Magic, version, and the length of the header."""
HEADER = re.compile(
    r"\{'descr': '(?P<dtype>[^']*)', 'fortran_order': (?P<fortran>True|False), 'shape': \((?P<shape>[\d, ]*)\),? *\}\s*"
)


def read_npy(path: Path) -> Mesh:
    """The points of a file; raises `DataError` for an array of another shape or type, and for what is none."""
    raw = path.read_bytes()
    start = START.match(raw)
    if start is None:
        raise DataError("it does not begin as a .npy file does")
    begin = start.end() + int.from_bytes(start["short"] or start["long"], "little")
    header = HEADER.fullmatch(raw[start.end() : begin].decode("latin-1"))
    if header is None:
        raise DataError("its header is not that of one array of numbers")
    if re.fullmatch(r"[<>=|][fiu]\d", header["dtype"]) is None:
        raise DataError(f"its values are no numbers ({header['dtype']})")
    shape = tuple(int(size) for size in header["shape"].replace(" ", "").split(",") if size)
    if len(shape) != 2 or shape[1] < 3:
        raise DataError(f"an array of shape {shape} is none of [points, values from 3 on]")
    check_count(shape[0], "points")
    values = np.frombuffer(raw[begin:], header["dtype"], min(shape[0] * shape[1], len(raw)))
    return Mesh(values.reshape(shape, order="F" if header["fortran"] == "True" else "C"))
