"""``tyre VERB key=value ...``: the whole product behind one command; ``python -m tyre_lightning VERB ...`` is the same."""

from __future__ import annotations

import difflib
import sys


def main() -> int:
    """Run a verb; gives the exit code."""
    verb = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if verb == "demo":
        from tyre_lightning.demo import __main__ as demo

        del sys.argv[1]
        return demo.start()
    from tyre_lightning.commands import COMMANDS, start

    if verb in COMMANDS:
        del sys.argv[1]
        return start(verb)
    verbs = [*COMMANDS, "demo"]
    if verb in ("--help", "-h"):
        print(f"tyre VERB key=value ...: {', '.join(verbs)}")
        return 0
    nearest = difflib.get_close_matches(verb, verbs, n=1)
    hint = f" did you mean {nearest[0]}?" if nearest else ""
    print(f"error: there is no verb {verb}:{hint} choose from {', '.join(verbs)}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
