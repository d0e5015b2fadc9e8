"""The command line: `factdpo [KEY=VALUE ...]`, or a command of the table."""

import sys

from factdpo import output, signals
from factdpo.commands import table
from factdpo.commands.refusals import or_refuse

INTERRUPTED = 130  # exit code


def main() -> None:
    """Runs one command; exits 0 when done, 1 when the run failed, 2 when it cannot be done as asked, 130 on Ctrl-C.

    After Ctrl-C it is 130 and a line whatever it has torn, a library's import for one, and however often it comes.
    """
    output.guard()
    with signals.noted():
        try:
            or_refuse(lambda: _dispatch(sys.argv[1:]))
        except KeyboardInterrupt:
            _end_interrupted()
        except Exception:
            if not signals.interrupted():
                raise
            _end_interrupted()


def _end_interrupted() -> None:
    signals.end_at_once(INTERRUPTED)
    print("factdpo: interrupted", file=sys.stderr)
    sys.exit(INTERRUPTED)


def _dispatch(arguments: list[str]) -> None:
    if command := table.find("".join(arguments[:1])):
        command.load().main(arguments[1:])
        if output.error():  # what it prints is what was asked for
            sys.exit(1)
    elif {"-h", "--help"} & {*arguments}:
        table.HELP.load().main([name for name in arguments if name not in ("-h", "--help")])
    elif "--version" in arguments:
        table.VERSION.load().main([])
    else:
        from factdpo.commands import run  # only now: it imports Hydra

        run.main(arguments)
        if {"--cfg", "-c", "--info", "-i", "dry_run=true"} & {*arguments} and output.error():
            sys.exit(1)
