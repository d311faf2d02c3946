"""Arrow's columns as arrays."""

from pathlib import Path
from typing import Any

import numpy as np

from qgf.data.readers._layout import optional, same_shape, undamaged
from qgf.errors import UserError


def struct_leaves(array: Any, name: str) -> dict[str, Any]:
    """Return a column itself, or what a column of structures holds, by path."""
    from pyarrow import types

    if not types.is_struct(array.type):
        return {name: array}
    found = {}
    for field, part in zip(array.type, array.flatten(), strict=True):
        found.update(struct_leaves(part, f"{name}/{field.name}"))
    return found


def number_type(kind: Any) -> np.dtype | None:
    """Return the type of the numbers, or of those in lists, that a column holds, if it does."""
    from pyarrow import types

    while _is_list(kind):
        kind = kind.value_type
    if types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind):
        return np.dtype(kind.to_pandas_dtype())
    return None


def as_numpy(array: Any, name: str, path: Path) -> np.ndarray:
    """Return a column of numbers, or of lists of them, that are equally long in every row.

    Raises:
        UserError: they are not equally long, or a number is missing.
    """
    from pyarrow import compute

    shape = [len(array)]
    while True:
        if array.null_count:
            raise UserError(
                f"{path}: {name} has {array.null_count:,} gaps where numbers belong; fill them"
            )
        if not _is_list(array.type):
            return array.to_numpy(zero_copy_only=False).reshape(shape)
        lengths = np.unique(compute.list_value_length(array).to_numpy(zero_copy_only=False))
        same_shape(f"{path}: {name}", [("some rows", (int(n),)) for n in lengths])
        shape.append(int(lengths[0]) if len(lengths) else 0)
        array = array.flatten()


def _is_list(kind: Any) -> bool:
    from pyarrow import types

    return types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)


def read_column(path: Path, name: str, extra: str) -> Any:
    """Return one column of an Arrow or Parquet file, or None if it has none of that name.

    Raises:
        UserError: pyarrow is missing, or the file cannot be read.
    """
    arrow = optional("pyarrow", extra, path)
    with undamaged(path):
        if path.suffix == ".parquet":
            file = optional("pyarrow.parquet", extra, path).ParquetFile(path)
            table = file.read(columns=[name] if name in file.schema_arrow.names else [])
        else:
            file = optional("pyarrow.ipc", extra, path).open_file(arrow.memory_map(str(path)))
            table = file.read_all()
        if name not in table.column_names:
            return None
        column = table.column(name)
        return arrow.concat_arrays(column.chunks) if column.num_chunks else arrow.nulls(0)


def schema(path: Path, extra: str) -> dict[str, Any]:
    """Return the types of a Parquet file's columns. UserError as `read_column`."""
    with undamaged(path):
        found = optional("pyarrow.parquet", extra, path).read_schema(path)
    return {field.name: field.type for field in found}
