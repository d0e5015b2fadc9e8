"""`factdpo report`: write the report, say where it lies and how large it is."""

import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING

from factdpo.commands.parser import Parser, folder
from factdpo.config.folders import conf_folders
from factdpo.config.schema import ConfigError
from factdpo.console import plural, say
from factdpo.store import cache

if TYPE_CHECKING:
    from factdpo.results.tables import Results


def main(arguments: list[str]) -> None:
    """Writes one file; raises ConfigError for what cannot be done."""
    args = make_parser().parse_args(arguments)
    home = Path(args.folder)
    out = Path(args.out) if args.out else home / "report.html"
    if out.is_dir():
        raise ConfigError(f"--out {out}: a folder; name a file in it")
    from factdpo.report.contents import gather
    from factdpo.report.page import render

    contents = gather(home, conf_folders())
    try:
        cache.write_atomic(out, render(contents))
    except OSError as error:
        raise ConfigError(f"{out}: cannot be written ({error}); give another place with --out") from None
    say(contents.answer.sentence)
    for line in contents.left_out:
        say(line, "yellow")
    say(f"{out}: {out.stat().st_size / 1e6:.1f} MB")
    if args.figures:
        _draw(contents.results)
    if args.open:
        webbrowser.open(out.resolve().as_uri())


def _draw(results: "Results") -> None:
    """Draw the figures of runs that have none; ConfigError where one's record cannot be read."""
    from factdpo.report.figures import draw

    try:
        drawn = draw(results)
    except (OSError, ValueError) as error:
        raise ConfigError(f"--figures: {error}") from None
    say(f"figures of {plural(len(drawn), 'run')} drawn")


def make_parser() -> Parser:
    parser = Parser(
        "report",
        "A sweep or a run as one HTML file, which needs no network and can be mailed.",
        """examples:
  factdpo report outputs/sweeps/beta               writes outputs/sweeps/beta/report.html
  factdpo report outputs/sweeps/beta --open        and shows it
  factdpo report outputs/sweeps/beta --figures     and draws each run's figures/, which runs of a sweep do not
  factdpo report outputs/runs/<run> --out run.html""",
    )
    about = "a sweep's, a run's, or one with several below it"
    parser.add_argument("folder", type=folder, metavar="FOLDER", help=about)
    parser.add_argument("--out", metavar="FILE", help="where to write it (default: report.html in the folder)")
    parser.add_argument("--open", action="store_true", help="show it in the browser")
    parser.add_argument("--figures", action="store_true", help="draw figures/ of runs that have none (eval.figures)")
    return parser
