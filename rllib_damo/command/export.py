"""The command ``rllib-damo export``."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated

import typer

from rllib_damo.command.inputs import run_file
from rllib_damo.command.run import quieten
from rllib_damo.deploy.export import export_policy


def export(
    checkpoint: Annotated[str, typer.Argument(help="Checkpoint folder, or its address (s3://...).")],
    out: Annotated[Path, typer.Argument(help="File to write: .onnx, .pt (TorchScript) or .npz (NumPy).")],
    format: Annotated[
        str | None, typer.Option("--format", help="onnx, torchscript or npz. [default: by OUT's suffix]")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT.")] = False,
    file: Annotated[
        Path | None, typer.Option("--file", "-f", help="Python file to run first, which defines what is missing.")
    ] = None,
) -> None:
    """Write a checkpoint's policy as a file that is played without Ray.

    Raw observations in, actions in the environment's units out. Loading a checkpoint executes its pickles: export only
    checkpoints that you trust.
    """
    quieten()
    if file is not None:
        run_file(file)
    written = export_policy(checkpoint, str(out), format=format, overwrite=overwrite)
    typer.echo(f"Written: {written}\nSHA-256: {hashlib.sha256(written.read_bytes()).hexdigest()}")
