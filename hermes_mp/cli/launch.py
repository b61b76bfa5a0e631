"""`hermes-launch`, until its program is there: a Ctrl-C that comes meanwhile ends it without a traceback."""

from __future__ import annotations

import signal
import sys


def main() -> int:
    """The exit code of `cli.launching`."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from hermes_mp.cli.launching import main as launch

    return launch()


if __name__ == "__main__":
    sys.exit(main())
