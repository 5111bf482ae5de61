"""The formats that can be read and written: one line each. `register_format` adds one from outside the package."""

from __future__ import annotations

from ray.tune.registry import register_input, registry_contains_input, registry_get_input

from rllib_damo.data.formats import csv, hdf5, hdf5_episodes, lerobot, minari, npz, parquet, rllib_episodes, rllib_json
from rllib_damo.data.formats.files import Place
from rllib_damo.data.formats.reader import Format
from rllib_damo.errors import DataError

# The first that recognises a place has it.
_OWN = (
    minari.FORMAT,
    lerobot.FORMAT,
    rllib_episodes.FORMAT,
    parquet.FORMAT,
    hdf5_episodes.FORMAT,
    hdf5.FORMAT,
    npz.FORMAT,
    csv.FORMAT,
    rllib_json.FORMAT,
)
_others: dict[str, Format] = {}
_KEY = "rllib_damo/formats"  # in Ray's registry, by which the processes of trials know what the user's file registers


def register_format(form: Format) -> None:
    """Add a format, or replace one of the same name; it goes before those of the package.

    Processes that Ray starts know it, too.

    Raises:
        DataError: if it says neither by suffixes, nor by a scheme, nor by `recognises`, which places it reads.
    """
    if not (form.suffixes or form.scheme or form.recognises):
        raise DataError(f"Format {form.name!r}: give suffixes, a scheme or `recognises`, by which its data is known.")
    _others[form.name] = form
    registered = dict(_others)
    register_input(_KEY, lambda: registered)


def formats() -> list[Format]:
    """All formats, in the order in which they are asked."""
    if not _others and registry_contains_input(_KEY):
        _others.update(registry_get_input(_KEY)())
    return [*_others.values(), *(form for form in _OWN if form.name not in _others)]


def suffixes() -> tuple[str, ...]:
    """How the names of files end that can be read."""
    return tuple(dict.fromkeys(suffix for form in formats() for suffix in form.suffixes))


def written_suffixes() -> tuple[str, ...]:
    """How the names of files end that can be written, the usual ending of each format."""
    return tuple(form.suffixes[0] for form in formats() if form.write and form.suffixes)


def kinds() -> str:
    """What can be read, in a sentence's part."""
    return "; ".join(form.help + (f" ({', '.join(form.suffixes)})" if form.suffixes else "") for form in formats())


def find(place: Place, read_method: str = "") -> Format:
    """The format of what a place names.

    Args:
        place: an address, a folder, a pattern, or a file's name.
        read_method: RLlib's `input_read_method`, to ask for a format; "": whatever it is.

    Raises:
        DataError: if there is none, or the place cannot be reached.
    """
    known = [form for form in formats() if read_method in ("", form.read_method)]
    if not known:
        methods = [repr(form.read_method) for form in formats() if form.read_method]
        raise DataError(f"input_read_method={read_method!r}: there are {', '.join(methods)}; or leave it unset.")
    for form in known:
        if form.scheme and place.name.startswith(form.scheme):
            return form
    is_named = not place.is_folder and any(place.name.endswith(form.suffixes) for form in known)
    for form in known:
        if not form.suffixes:
            fits = form.recognises is not None
        elif is_named:
            fits = place.name.endswith(form.suffixes)
        else:
            fits = place.has(form.suffixes)
        if fits and (form.recognises is None or form.recognises(place)):
            return form
    if place.is_address and place.is_single:  # in a bucket, Parquet often has no suffix
        return parquet.FORMAT
    if place.is_single:
        raise DataError(f"{place.shown}: files are read that end in {_either(suffixes())}.")
    raise DataError(
        f"{place.shown}: no file there that can be read, whose name ends in {_either(suffixes())}. Names that begin "
        "with _ or . are passed over in folders and globs."
    )


def find_writer(target: str) -> Format:
    """The format that writes to this path, or to this address of a scheme.

    Raises:
        DataError: if there is none.
    """
    for form in formats():
        if form.write and (
            (form.scheme and target.startswith(form.scheme)) or ("://" not in target and target.endswith(form.suffixes))
        ):
            return form
    raise DataError(
        f"{target}: write to a path in {_either(written_suffixes())}, or to a Minari id such as hopper/mine-v0."
    )


def _either(names: tuple[str, ...]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"
