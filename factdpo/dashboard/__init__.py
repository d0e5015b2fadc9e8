"""`factdpo dashboard`: sweeps and runs live in the browser; read only, and reachable from this machine only.

`watch` reads the runs' folders as `factdpo status` does, `server` serves that as pages and JSON, and below the live
part a page shows the report of the same folder. trackio's dashboard is no substitute: it draws what was logged to its
own database, run by run, without sweeps, planned, killed or failed runs, tracebacks, flips or belief graphs.
"""
