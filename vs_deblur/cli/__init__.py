"""The command line: one click command a file, loaded when it is called.

Each module of :data:`COMMANDS` has a click command named ``command``. ``vs-deblur --help`` shows
the one-line texts of the table and imports none of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any, NoReturn

import click

from vs_deblur._version import __version__

COMMANDS: dict[str, tuple[str, str]] = {
    "video": ("vs_deblur.cli.video", "Deblur a video file into another."),
    "photo": ("vs_deblur.cli.photo", "Deblur photos: JPEG, PNG, TIFF, WebP, and folders of them."),
    "serve": ("vs_deblur.cli.serve", "Frame server: deblurred frames as y4m or raw on stdout."),
    "demo": ("vs_deblur.cli.demo", "Make a blurred clip, deblur it, and show the difference."),
    "measure": (
        "vs_deblur.cli.measure",
        "PSNR and SSIM against a sharp original, before and after.",
    ),
    "models": ("vs_deblur.cli.models", "List the models that ship; convert published ones."),
    "gimp": ("vs_deblur.cli.gimp", "Install the action for GIMP 3, and examine it."),
    "doctor": ("vs_deblur.cli.doctor", "Show versions, devices and the precision that is used."),
}


def _set_verbose(_ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value:
        from vs_deblur.cli._common import be_verbose

        be_verbose()


def _verbose_option() -> click.Option:
    return click.Option(
        ["-v", "--verbose"],
        is_flag=True,
        expose_value=False,
        is_eager=True,
        callback=_set_verbose,
        help="Say more; show tracebacks.",
    )


class LazyGroup(click.Group):
    """A group whose commands are imported when they are called. Adds ``-v`` to each."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the module of a command."""
        if cmd_name not in COMMANDS:
            return None
        if cmd_name not in self.commands:
            command: click.Command = import_module(COMMANDS[cmd_name][0]).command
            command.params.append(_verbose_option())
            self.add_command(command, cmd_name)
        return self.commands[cmd_name]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The table's texts: no import."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Suggest the nearest command's name for one that does not exist."""
        name = args[0]
        if not name.startswith("-") and name not in COMMANDS:
            import difflib

            near = difflib.get_close_matches(name, COMMANDS, n=1)
            hint = f"did you mean {near[0]}?" if near else ""
            ctx.fail(f"no such command {name!r}. {hint}".strip())
        return super().resolve_command(ctx, args)


@click.group(
    cls=LazyGroup,
    params=[_verbose_option()],
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="vs-deblur", message="%(prog)s %(version)s")
def group(**_: Any) -> None:
    """Motion deblurring for video and photos: a file converter and a frame server.

    `vs-deblur COMMAND --help` explains a command. In VapourSynth scripts:
    `from vs_deblur import deblur`.
    """


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and end the process with its exit code (see vs_deblur.errors)."""
    from vs_deblur.cli._common import run

    run(group, args)
