"""Addresses, and what is said of them."""

from __future__ import annotations

import pyarrow as pa
import pytest
from pyarrow import fs

from rllib_damo.utils.uris import connect, why, without_password


@pytest.mark.parametrize(
    ("given", "opened"),
    [
        ("gs://bucket/x", "gs://bucket/x?retry_limit_seconds=60"),
        ("gcs://bucket/x?scheme=http", "gcs://bucket/x?scheme=http&retry_limit_seconds=60"),
        ("gs://bucket/x?retry_limit_seconds=5", "gs://bucket/x?retry_limit_seconds=5"),
        ("s3://bucket/x", "s3://bucket/x"),
        ("/folder/a#b", "/folder/a#b"),
    ],
)
def test_google_is_not_waited_for_in_silence(given: str, opened: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class FileSystem:
        from_uri = staticmethod(lambda address: (None, address))

    monkeypatch.setattr(fs, "FileSystem", FileSystem)
    assert connect(given) == (None, opened)


@pytest.mark.parametrize("name", ["a b.parquet", "a#b.parquet", "a?.parquet", "a[1].parquet", "ü.parquet"])
def test_signs_that_no_address_has(name: str) -> None:
    with pytest.raises((ValueError, pa.ArrowException)) as caught:
        connect(f"s3://bucket/{name}")
    assert "write %20 for a space, %23 for #, %3F for ?; of globs only * and ** work." in why(caught.value)


@pytest.mark.parametrize("scheme", ["S3", "s3a", "https", "az", "Minari"])
def test_unknown_schemes(scheme: str) -> None:
    with pytest.raises(pa.ArrowException) as caught:
        connect(f"{scheme}://bucket/x")
    assert why(caught.value).endswith(
        "There are s3://, gs://, abfs://, hdfs:// and file://, and for Minari's datasets minari://."
    )


def test_one_line_is_said() -> None:
    assert why(OSError("Unable to load libjvm\n and\n more")).startswith("Unable to load libjvm. Check the address, ")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Cannot parse URI: 's3://KEY:SE/CR+ET@bucket/x'", "Cannot parse URI: 's3://bucket/x'"),
        ("['s3://K:S@b/x', 's3://K:S@b/y']", "['s3://b/x', 's3://b/y']"),
        ("abfs://container@account.dfs.core.windows.net/x", "abfs://container@account.dfs.core.windows.net/x"),
        ("s3://b/x at 12:00 of a@b", "s3://b/x at 12:00 of a@b"),
    ],
)
def test_passwords_are_not_told(text: str, expected: str) -> None:
    assert without_password(text) == expected
