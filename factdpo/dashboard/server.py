"""The dashboard's web server: pages, their data as JSON, and reports. Read only, and for this machine only."""

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
REPORTS = 4  # cached, of some megabytes each

# Any port: one that ssh forwards to ours has its own number.
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
    """The application that watches a folder. It reads what the folder's listing holds, never a path from a request."""
    watch, reports = Watch(root), _Reports(conf_folders)

    def find(request: Request) -> Shown:
        name = request.query_params.get("folder", "")
        if (entry := watch.shown().get(name)) is None:
            raise HTTPException(404, f"{name}: no sweep and no run of this name in {root}")
        return entry

    def sweep_page(request: Request) -> Response:
        find(request)
        return FileResponse(HERE / "sweep.html")

    def log(request: Request) -> Response:
        id = request.query_params.get("run", "")
        for run in find(request).runs.runs:
            if run.id == id:
                return PlainTextResponse(log_of(run))
        raise HTTPException(404, f"{id}: no run of this id")

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
    """Refuses requests under another host name, and sets the headers that keep other sites out.

    After DNS rebinding (a site points its own name here once its page is loaded) the browser takes this server for that
    site's origin and lets it read everything; but the Host header still holds the site's name.
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
    """A cache of the reports that were viewed last; a report is made again when another run has ended."""

    def __init__(self, conf_folders: list[Path]):
        self.conf_folders = conf_folders
        self.made: dict[str, tuple[str, str]] = {}  # name -> stamp of its runs, and the page
        self.lock = threading.Lock()  # one at a time, to leave the processor to the runs

    def page(self, shown: Shown) -> Response:
        from factdpo.report.contents import gather  # pandas: only when a report is requested
        from factdpo.report.page import render

        with self.lock:
            stamp = shown.stamp()
            cached = self.made.pop(shown.name, None)
            page = cached[1] if cached and cached[0] == stamp else render(gather(shown.runs.folder, self.conf_folders))
            self.made[shown.name] = stamp, page
            for oldest in list(self.made)[:-REPORTS]:
                del self.made[oldest]
        # The page itself states its policy, since its scripts are inline.
        return HTMLResponse(page, headers={"Content-Security-Policy": "frame-ancestors 'self'"})


def _plotly(_: Request) -> Response:
    from plotly.offline import get_plotlyjs

    day = {"Cache-Control": "private, max-age=86400"}
    return Response(get_plotlyjs(), media_type="text/javascript", headers=day)
