"""What is asked of an encoder.

Of a frozen one: `features` are extracted once, `probes` are fitted to them, or `zeroshot` compares them with
`prompts.json`; of a model that trains, `retrieval` between images and captions. `metrics` has the figures and their
intervals, `audit` what the splits share that would make a figure look better than it is. Plots and pages are drawn in
`tools/`.
"""
