"""`factdpo report`: a sweep or a run as one HTML file that can be mailed, read on a phone and printed.

contents collects the data (with settings, answer, beliefs and curves) as plain Python, page renders it as HTML. Charts
and the graph are drawn in the browser from numbers in the page, which loads nothing from the network.
"""
