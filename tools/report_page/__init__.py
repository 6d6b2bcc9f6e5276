"""The parts of the report that tools/report.py writes.

`runs` reads the folders that main.py and main_linear.py wrote. `tables` puts their results beside the published rows
and writes the tables as Markdown and as CSV, `differences` those of runs side by side; `figures` draws the curves, and
`embedding_map` the map of the test embeddings. `cases` are test cases with what the encoder looks at, `sample_views`
what the losses see; both are `pictures`. `page` fills page.html.j2, which escapes all that a run says, and page.css is
its style.
"""
