"""Parquet: rows as they are. A value that Python has no word for (bytes that are no text, a date far away) is a problem
of its row.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deltatune.core.errors import DataError
from deltatune.data.table import Record, Table, unreadable

CUT = 1 << 12
"""Rows that are turned at once; only those of a cut with an odd value are turned one by one."""


def parquet(path: Path) -> Table:
    """The rows of a Parquet file; raises `DataError` for one that is none, and for two columns of one name."""
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
        columns = tuple(str(name) for name in table.column_names)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{path}: not a readable Parquet file ({error})") from None
    if len(set(columns)) < len(columns):
        raise DataError(f"{path}: column {next(c for c in columns if columns.count(c) > 1)!r} stands there twice")
    records = [
        Record(str(path), number, values, wrong or unreadable(values))
        for number, (values, wrong) in enumerate(_rows(table), 1)
    ]
    return Table(str(path), columns, records)


def _rows(table: Any) -> Iterator[tuple[dict[str, Any], str | None]]:
    """Values of every row, or what is wrong with them."""
    for start in range(0, table.num_rows, CUT):
        cut = table.slice(start, CUT)
        try:
            found = cut.to_pylist()
        except (ValueError, OverflowError):
            yield from (_row(cut.slice(place, 1)) for place in range(cut.num_rows))
        else:
            yield from ((values, None) for values in found)


def _row(row: Any) -> tuple[dict[str, Any], str | None]:
    try:
        return row.to_pylist()[0], None
    except UnicodeDecodeError as error:
        return {}, f"not UTF-8 text ({error.reason} at byte {error.start})"
    except (ValueError, OverflowError) as error:
        return {}, f"a value cannot be read ({error})"
