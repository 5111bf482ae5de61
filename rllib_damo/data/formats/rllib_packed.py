"""What RLlib's recordings need: normalised actions mapped back, packed arrays and spaces decoded, no code run."""

from __future__ import annotations

import base64
import io
import pickle
import zlib
from typing import Any

import gymnasium as gym
import numpy as np

from rllib_damo.data.formats.assemble import as_float_matrix
from rllib_damo.errors import DataError
from rllib_damo.utils.spaces import from_unit

_UNIT_TOLERANCE = 1e-4  # normalised by a program in float32


def normalized_to_env(name: str, actions: np.ndarray, space: gym.Space | None, *, is_recording: bool) -> np.ndarray:
    """Normalised actions in the environment's units, (N, act) float32; what is not finite stays so.

    Args:
        name: for messages.
        actions: (N, act), or (N,) for one action.
        space: the environment's action Box.
        is_recording: RLlib recorded them, which it does before it clips them to [-1, 1]. Others must lie there.

    Raises:
        DataError: if the space is not known, or they are not normalised.
    """
    if space is None:
        raise DataError(
            f"{name}: normalised actions, as RLlib records them, are mapped back by the environment's action space. "
            "Give the environment (--env), or action_space; or actions_in_input_normalized=False (--plain-actions) if "
            "they are in its units."
        )
    unit = as_float_matrix(name, "actions", actions, 2)
    beyond = ((np.abs(unit) > 1.0 + _UNIT_TOLERANCE) & np.isfinite(unit)).any(axis=1)
    if beyond.any() and not is_recording:
        row = int(np.flatnonzero(beyond)[0])
        raise DataError(
            f"{name}: normalised actions lie in [-1, 1], but {int(beyond.sum())} row(s) do not, first "
            f"{unit[row].tolist()} in row {row}. If these are in the environment's units, leave out "
            "actions_in_input_normalized=True (--normalized-actions)."
        )
    try:
        return from_unit(np.where(np.isfinite(unit), np.clip(unit, -1.0, 1.0), unit), space)
    except ValueError as error:
        raise DataError(f"{name}: {error}") from error


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickles numpy arrays and nothing else, so that a data file cannot run code, or ask for memory it does not fill.

    What pickles of arrays name is replaced by functions of this module, by exact names.
    """

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _NAMES[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"{module}.{name} is no numpy array") from None


def _empty_array(kind: Any, shape: Any, dtype: Any) -> np.ndarray:
    """The array that a pickle then fills with its own bytes."""
    if kind is not _ARRAY or shape != (0,):
        raise pickle.UnpicklingError("not a plain array")
    return np.empty((0,), "b")


_ARRAY = "ndarray"  # an argument in pickles; no class, which could be called
_NAMES: dict[tuple[str, str], Any] = {("numpy", "dtype"): np.dtype, ("numpy", "ndarray"): _ARRAY}
for _module in ("numpy.core", "numpy._core"):  # before numpy 2, and since
    _NAMES[f"{_module}.multiarray", "_reconstruct"] = _empty_array
    _NAMES[f"{_module}.multiarray", "scalar"] = np.float64(0).__reduce__()[0]
    _NAMES[f"{_module}.numeric", "_frombuffer"] = lambda data, dtype, shape, order: np.frombuffer(data, dtype).reshape(
        shape, order=order
    )


def unpack_array(name: str, column: str, value: str | bytes, max_bytes: int = 1 << 26) -> Any:
    """One value of a column that RLlib packed: base64 of an LZ4 frame of a pickled array.

    Args:
        name: of the dataset, for messages.
        column: its name, for messages.
        value: as it is in the file.
        max_bytes: what is larger when it is unpacked is refused.

    Raises:
        DataError: if it is anything else.
    """
    try:
        import lz4.frame

        frame = lz4.frame.LZ4FrameDecompressor()
        content = frame.decompress(base64.b64decode(value), max_length=max_bytes)
        if not frame.eof:
            raise ValueError(f"cut short, or larger than {max_bytes >> 20} MiB when it is unpacked")
        return _ArrayUnpickler(io.BytesIO(content)).load()
    except DataError:
        raise
    except Exception as error:  # a damaged pickle raises anything
        raise DataError(
            f"{name}: column {column!r} holds text, {str(value)[:40]!r} for one, where numbers are expected. (Text is "
            f"read where RLlib packed arrays into it; this is none: {error}.) Write numbers; of a vector, a list a "
            "row, or one column a dimension (obs_0, obs_1, ...)."
        ) from error


def decode_msgpack_hook(value: dict[Any, Any]) -> Any:
    """The `object_hook` for msgpack that rebuilds the numpy values of a recorded episode.

    Raises:
        DataError: for arrays of Python objects, which are pickles.
    """
    if b"nd" not in value:
        return value
    if value[b"nd"] and value.get(b"kind") in (b"O", b"V"):
        raise DataError("A recorded episode holds arrays of Python objects; only arrays of numbers can be read.")
    array = np.frombuffer(value[b"data"], np.dtype(value[b"type"]))
    return array.reshape(value[b"shape"]) if value[b"nd"] else array[0]


def decode_box(state: dict[str, Any] | None) -> gym.spaces.Box | None:
    """The Box that RLlib wrote into an episode as a dict, or None for another kind of space."""
    if not state or state.get("space") != "box":
        return None
    low, high = (
        np.load(io.BytesIO(zlib.decompressobj().decompress(base64.b64decode(state[side]), 1 << 26)), allow_pickle=False)
        for side in ("low", "high")
    )
    dtype = np.dtype(state["dtype"])
    return gym.spaces.Box(low.astype(dtype), high.astype(dtype), tuple(state["shape"]), dtype.type)
