"""`factdpo dashboard`: serve it on this machine until Ctrl-C."""

import argparse
import contextlib
import errno
import logging
import os
import socket
import warnings
import webbrowser
from pathlib import Path

from factdpo.commands.parser import Parser, folder
from factdpo.config.folders import conf_folders
from factdpo.config.schema import ConfigError
from factdpo.console import say

HOST = "127.0.0.1"
PORT, TRIED = 8765, 20  # the usual port, and how many from it on are tried


def main(arguments: list[str]) -> None:
    """Serves until it is interrupted; raises ConfigError if there is no such folder or the port is taken."""
    args = make_parser().parse_args(arguments)
    root = Path(args.folder)
    if not root.is_dir():
        raise ConfigError(f"{root}: no such folder; give the one that is the runs' out=, a sweep's, or a run's")
    import uvicorn

    from factdpo.dashboard.server import make_app

    with listen(args.port) as listening, contextlib.suppress(KeyboardInterrupt):
        port = listening.getsockname()[1]
        url = f"http://{HOST}:{port}/"
        if args.port is None and port != PORT:
            say(f"port {PORT} is taken; --port chooses another")
        say(f"{url}  shows {root}, live; Ctrl-C ends it, and no run")
        if args.open:
            webbrowser.open(url)  # it may come before the server is up: the port takes connections already
        app = make_app(root, conf_folders())
        logging.getLogger("uvicorn").setLevel(logging.ERROR)  # what anybody may send is no news; a bug is
        quiet = uvicorn.Config(
            app, log_config=None, access_log=False, lifespan="off", timeout_graceful_shutdown=1, ws="none"
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # of a server that Ctrl-C ended before it began
            uvicorn.Server(quiet).run(sockets=[listening])


def listen(port: int | None) -> socket.socket:
    """A socket that listens on this machine: on the given port, else on the first free one from PORT on."""
    for tried in [port] if port is not None else range(PORT, PORT + TRIED):
        try:
            return socket.create_server((HOST, tried))
        except OSError as error:
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise
            reason = os.strerror(error.errno)
    which = f"--port {port}" if port is not None else f"ports {PORT} to {PORT + TRIED - 1}"
    raise ConfigError(f"{which}: cannot be used ({reason}); give another with --port")


def _port(text: str) -> int:
    if not (text.isdigit() and 1 <= int(text) <= 65535):
        raise argparse.ArgumentTypeError(f"{text}: must be a number from 1 to 65535")
    return int(text)


def make_parser() -> Parser:
    parser = Parser(
        "dashboard",
        "Sweeps and runs in the browser while they are being done: how far each is, what failed and why,\n"
        "curves, memory, and the report of what has finished. It changes nothing, and only this machine can reach it.",
        """examples:
  factdpo dashboard                          the sweeps and runs in outputs/
  factdpo dashboard outputs/sweeps/beta --open
  ssh -L 8765:localhost:8765 <machine>       from another machine: forward the port, then open localhost:8765""",
    )
    about = "of sweeps and runs, of a sweep, or of a run (default: outputs)"
    parser.add_argument("folder", nargs="?", type=folder, default="outputs", metavar="FOLDER", help=about)
    parser.add_argument("--port", type=_port, help=f"(default: {PORT}, or the next one that is free)")
    parser.add_argument("--open", action="store_true", help="show it in the browser")
    return parser
