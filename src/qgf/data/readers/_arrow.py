"""Arrow's columns as arrays."""

from pathlib import Path
from typing import Any

import numpy as np

from qgf.data.readers._layout import damaged, optional
from qgf.errors import UserError


def struct_leaves(array: Any, name: str, extra: str, path: Path) -> dict[str, Any]:
    """Return a column itself, or what a column of structures holds, by path."""
    types = optional("pyarrow.types", extra, path)
    if not types.is_struct(array.type):
        return {name: array}
    found = {}
    for field, part in zip(array.type, array.flatten(), strict=True):
        found.update(struct_leaves(part, f"{name}/{field.name}", extra, path))
    return found


def number_type(kind: Any, extra: str, path: Path) -> np.dtype | None:
    """Return the type of the numbers, or of those in lists, that a column holds, if it does."""
    types = optional("pyarrow.types", extra, path)
    while not is_plain(kind, types):
        kind = kind.value_type
    if types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind):
        return np.dtype(kind.to_pandas_dtype())
    return None


def as_numpy(array: Any, name: str, extra: str, path: Path) -> np.ndarray:
    """Return a column of numbers, or of lists of them, that are equally long in every row.

    Raises:
        UserError: they are not equally long, or a number is missing.
    """
    types, compute = (
        optional("pyarrow.types", extra, path),
        optional("pyarrow.compute", extra, path),
    )
    rows, shape = len(array), []
    _check_whole(array, name, path)
    while not is_plain(array.type, types):
        if types.is_fixed_size_list(array.type):
            shape.append(array.type.list_size)
        else:
            lengths = np.unique(compute.list_value_length(array).to_numpy(zero_copy_only=False))
            if len(lengths) > 1:
                raise UserError(
                    f"{path}: {name} changes its shape: rows have {lengths[0]} to "
                    f"{lengths[-1]} numbers"
                )
            shape.append(int(lengths[0]) if rows else 0)
        array = array.flatten()
        _check_whole(array, name, path)
    return array.to_numpy(zero_copy_only=False).reshape(rows, *shape)


def is_plain(kind: Any, types: Any) -> bool:
    """Whether a type is no list."""
    return not (types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))


def _check_whole(array: Any, name: str, path: Path) -> None:
    if array.null_count:
        raise UserError(f"{path}: {name} has {array.null_count:,} gaps where numbers belong")


def read_column(path: Path, name: str, extra: str) -> Any:
    """Return one column of an Arrow or Parquet file, or None if it has none of that name.

    Raises:
        UserError: pyarrow is missing, or the file cannot be read.
    """
    arrow = optional("pyarrow", extra, path)
    try:
        if path.suffix == ".parquet":
            file = optional("pyarrow.parquet", extra, path).ParquetFile(path)
            if name not in file.schema_arrow.names:
                return None
            column = file.read(columns=[name]).column(name)
        else:
            table = optional("pyarrow.ipc", extra, path).open_file(arrow.memory_map(str(path)))
            table = table.read_all()
            if name not in table.column_names:
                return None
            column = table.column(name)
        return arrow.concat_arrays(column.chunks) if column.num_chunks else arrow.nulls(0)
    except (OSError, ValueError, arrow.ArrowException) as error:
        raise damaged(path, error) from None


def schema(path: Path, extra: str) -> dict[str, Any]:
    """Return the types of a Parquet file's columns. UserError as `read_column`."""
    arrow = optional("pyarrow", extra, path)
    try:
        found = optional("pyarrow.parquet", extra, path).read_schema(path)
    except (OSError, ValueError, arrow.ArrowException) as error:
        raise damaged(path, error) from None
    return dict(zip(found.names, found.types, strict=True))
