"""What is asked of an encoder.

Of a frozen one: `audit` tells what the splits share that would make a figure look better than it is; `features` are
extracted once; `probes` are fitted to those of the training split, or `zeroshot` compares those of the test split with
the prompts in `prompts.json`; `metrics` has the figures and their intervals, and `results` writes them down. Of a model
that trains: `retrieval` finds captions by image and images by caption. Plots and pages are drawn in `tools/`.
"""
