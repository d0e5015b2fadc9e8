"""The dashboard's web server: pages, what they ask for as JSON, and reports. Read only, and for this machine alone."""

import re
import threading
from pathlib import Path

from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from factdpo.config.schema import ConfigError
from factdpo.dashboard.watch import Shown, Watch, log_of

HERE = Path(__file__).parent
FILES = {path.name: path for path in [*HERE.glob("*.js"), *HERE.glob("*.css"), HERE.parent / "report" / "style.css"]}
REPORTS = 4  # that are kept, of some megabytes each

# The port may be any: one that ssh forwards to ours has its own number.
THIS_MACHINE = re.compile(r"(localhost|127\.0\.0\.1|\[::1\])(:\d+)?", re.IGNORECASE)
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; connect-src 'self'; "
        "frame-src 'self'; img-src data: blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


def make_app(root: Path, conf_folders: list[Path]) -> Starlette:
    """The application that watches a folder. Everything it reads is found in the folder's listing, never by a path."""
    watch, reports = Watch(root), _Reports(conf_folders)

    def find(request: Request) -> Shown:
        name = request.query_params.get("folder", "")
        try:
            return watch.shown()[name]
        except KeyError:
            raise HTTPException(404, f"{name}: no sweep and no run of this name in {root}") from None

    def sweep_page(request: Request) -> Response:
        find(request)
        return FileResponse(HERE / "sweep.html")

    def log(request: Request) -> Response:
        wanted = request.query_params.get("run", "")
        found = [run for run in find(request).runs.runs if run.id == wanted]
        if not found:
            raise HTTPException(404, f"{wanted}: no run of this id")
        return PlainTextResponse(log_of(found[0]))

    def file(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in FILES:
            raise HTTPException(404, f"{name}: no such file")
        return FileResponse(FILES[name])

    return Starlette(
        routes=[
            Route("/", lambda _: FileResponse(HERE / "overview.html")),
            Route("/sweep", sweep_page),
            Route("/report", lambda request: reports.page(find(request))),
            Route("/api/overview", lambda _: JSONResponse(watch.overview())),
            Route("/api/sweep", lambda request: JSONResponse(watch.detail(find(request)))),
            Route("/api/log", log),
            Route("/file/plotly.js", _plotly),
            Route("/file/{name}", file),
        ],
        middleware=[Middleware(_OnlyThisMachine)],
        exception_handlers={ConfigError: lambda _, error: PlainTextResponse(str(error), 503)},
    )


class _OnlyThisMachine:
    """Refuses who asks under another name; tells browsers what the pages may load, and that no other site may.

    A site that has its own name point here after its page was loaded (DNS rebinding) would be this server's origin to
    the browser, and could read everything; but the name stands in the Host header.
    """

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        host = Headers(scope=scope).get("host", "")
        answer: ASGIApp = self.app
        if not THIS_MACHINE.fullmatch(host):
            answer = PlainTextResponse("This dashboard answers to localhost, 127.0.0.1 and [::1] only.\n", 421)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await answer(scope, receive, send_with_headers)


class _Reports:
    """The reports of the sweeps and runs that were looked at last, each made anew when another run has ended."""

    def __init__(self, conf_folders: list[Path]):
        self.conf_folders = conf_folders
        self.made: dict[str, tuple[str, str]] = {}  # name -> what it was made of, and the page
        self.lock = threading.Lock()  # one at a time: two would take twice as long from the runs

    def page(self, shown: Shown) -> Response:
        from factdpo.report.contents import gather  # pandas: not before somebody asks
        from factdpo.report.page import render

        with self.lock:
            before = self.made.pop(shown.name, ("", ""))
            stamp = shown.stamp()
            page = before[1] if before[0] == stamp else render(gather(shown.runs.folder, self.conf_folders))
            self.made[shown.name] = stamp, page
            for oldest in list(self.made)[:-REPORTS]:
                del self.made[oldest]
        # What the page may do stands in the page, which has its scripts inside.
        return HTMLResponse(page, headers={"Content-Security-Policy": "frame-ancestors 'self'"})


def _plotly(_: Request) -> Response:
    from plotly.offline import get_plotlyjs

    day = {"Cache-Control": "private, max-age=86400"}
    return Response(get_plotlyjs(), media_type="text/javascript", headers=day)
