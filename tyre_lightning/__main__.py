"""``tyre VERB key=value ...``: the whole product behind one command, as is ``python -m tyre_lightning VERB ...``."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

from tyre_lightning.errors import UserError

_MORE = "tyre VERB --help says which keys there are, with examples."


def main() -> int:
    """Run a verb; gives the exit code."""
    verb = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if verb == "demo":
        from tyre_lightning.demo import __main__ as demo

        del sys.argv[1]
        return demo.start()
    from tyre_lightning.command_line import run
    from tyre_lightning.commands import COMMANDS, start

    if verb in COMMANDS:
        del sys.argv[1]
        return start(verb)
    abouts = {name: command.usage.about for name, command in COMMANDS.items()} | {
        "demo": "the whole path on drawn tyres"
    }
    return run(lambda: _help(abouts) if verb in ("--help", "-h") else _refuse(verb, [*abouts]))


def _help(abouts: Mapping[str, str]) -> None:
    lines = [f"  {verb:8} {about}" for verb, about in abouts.items()]
    print("\n".join(["tyre VERB key=value ...", "", *lines, "", _MORE]))


def _refuse(verb: str, verbs: Sequence[str]) -> None:
    from tyre_lightning.command_line import no_such

    raise UserError(no_such(f"verb {verb}", verb, verbs))


if __name__ == "__main__":
    sys.exit(main())
