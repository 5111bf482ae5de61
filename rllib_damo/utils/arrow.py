"""Columns of transitions as Arrow tables, which Ray moves between processes, and back."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
from torch import Tensor

from rllib_damo.utils.ray_internals import tensor_column


def to_arrow(columns: Mapping[str, np.ndarray | Tensor]) -> pa.Table:
    """Numbers and vectors, the latter as Ray's tensor columns; float columns on the CPU without a copy."""
    arrays = {name: c.cpu().numpy() if isinstance(c, Tensor) else c for name, c in columns.items()}
    return pa.table({name: tensor_column(a) if a.ndim == 2 else pa.array(a) for name, a in arrays.items()})


def from_arrow(table: pa.Table) -> dict[str, np.ndarray]:
    """The reverse of `to_arrow`; vector columns come back as ``(M, width)`` arrays."""
    return {name: table.column(name).combine_chunks().to_numpy(zero_copy_only=False) for name in table.column_names}
