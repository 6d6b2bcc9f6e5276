"""The parts of the report that tools/report.py writes.

`runs` reads the folders that main.py and main_linear.py wrote. `tables` puts their results beside the published rows
and writes the tables as Markdown and as CSV; `figures` draws the curves. `page` fills page.html.j2, which escapes all
that a run says, and page.css is its style.
"""
