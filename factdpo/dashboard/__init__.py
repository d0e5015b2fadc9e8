"""`factdpo dashboard`: sweeps and runs in the browser while they are being done, on this machine alone; read only.

trackio's dashboard does not serve: it draws what was logged to its own database, run by run, and knows no sweep, no run
that is planned, killed or failed with a traceback, no flips and no graphs. What there is to see lies in the runs'
folders: `watch` reads it as `factdpo status` does, `server` hands it to the pages, and under the live part stands what
`factdpo report` makes of the same folder.
"""
