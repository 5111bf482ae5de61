"""Addresses (``s3://...``) of what is elsewhere: opened through pyarrow, and shown without their passwords."""

from __future__ import annotations

import re
from urllib.parse import quote

from pyarrow import fs


def connect(address: str) -> tuple[fs.FileSystem, str]:
    """The filesystem of an address (or of an absolute path), and the path on it.

    Raises:
        Exception: its class depends on the filesystem, which may also fail later; `why` describes it.
    """
    scheme, remote, rest = address.partition("://")
    if remote and "#" in rest:
        raise ValueError("a # is not a part of it")
    if scheme in ("gs", "gcs") and "retry_limit_seconds" not in rest:  # pyarrow's own limit is a quarter of an hour
        address += f"{'&' if '?' in rest else '?'}retry_limit_seconds=60"
    return fs.FileSystem.from_uri(address)


def why(error: Exception) -> str:
    """The first line of an error at an address, and the fix."""
    text = str(error).partition("\n")[0].rstrip(".") or type(error).__name__
    fix = "Check the address, the network and the credentials."
    if "Unrecognized filesystem type" in text:
        fix = "There are s3://, gs://, abfs://, hdfs:// and file://, and for Minari's datasets minari://."
    elif " URI: " in text or text.startswith("a #"):
        fix = "In an address write %20 for a space, %23 for #, %3F for ?; of globs only * and ** work."
    return f"{without_password(text)}. {fix}"


def address(path: str, place: str) -> str:
    """A path of `connect(place)` as an address: pyarrow's leave out scheme, account and parameters."""
    scheme, _, rest = place.partition("://")
    base, mark, parameters = rest.partition("?")
    authority = base.partition("/")[0]
    if not authority:  # a folder of this machine
        return path
    user, _, host = authority.rpartition("@")
    bucket, _, inside = path.lstrip("/").partition("/")
    if bucket not in (host, user.partition(":")[0]):  # neither s3://bucket nor abfs://container@account
        inside = path.lstrip("/")
    return f"{scheme}://{authority}/{quote(inside, safe='/:=+,@~!$&()*;')}{mark}{parameters}"


def without_password(text: str) -> str:
    """Text with the `user:password@` of its addresses left out."""
    return re.sub(r"://[^\s/:@]*:[^\s@]*@", "://", text)
