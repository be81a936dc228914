"""`peerctl cluster`: what concerns the version of all nodes together."""

import typer

from peerd.cli.output import (
    ConfigOption,
    Format,
    FormatOption,
    as_dict,
    connected,
    print_document,
)

cluster_app = typer.Typer(help="The cluster as a whole: end an upgrade.", no_args_is_help=True)


@cluster_app.callback()
def cluster() -> None:
    """A group of one command until there are more."""


@cluster_app.command("finalize")
def finalize(config: ConfigOption = None, output: FormatOption = Format.TABLE) -> None:
    """End an upgrade: use what all nodes know. No node goes back to an older version after that."""
    with connected(config) as client:
        answer = client.las.finalize_upgrade()
    if output is not Format.TABLE:
        print_document(output, as_dict(answer))
    elif answer.level_before == answer.level_used:
        typer.echo(f"nothing to finalise: level {answer.level_used} is in use")
    else:
        typer.echo(
            f"level {answer.level_used} is in use, before it {answer.level_before}: "
            "no node goes back to an older version now"
        )
