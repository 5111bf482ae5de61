"""The command ``rllib-damo report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rllib_damo.report.page import write_report


def report(
    run_dir: Annotated[
        str, typer.Argument(help="Folder or address (s3://...) of a run, as `rllib train` prints it, or of a trial.")
    ],
    out: Annotated[
        Path | None, typer.Option(help="The .html file, which is replaced. [default: the run's name, in this folder]")
    ] = None,
) -> None:
    """Show a run, or a search, on one HTML page: curves, signs of trouble, settings. It may still be running."""
    typer.echo(f"Written: {write_report(run_dir, out)}")
