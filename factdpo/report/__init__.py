"""`factdpo report`: a sweep or a run as one HTML file that can be mailed, read on a phone and printed.

What it says is gathered in contents (with settings, answer, beliefs and curves) as plain Python; page turns that into
HTML. Charts and the graph are drawn in the browser from numbers that lie in the page; it asks no network for anything.
"""
