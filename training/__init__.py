"""One update of the model, and a run that survives what happens to it.

`update` takes a step's batches and changes the weights; `verdicts` reads afterwards whether its losses were finite;
`schedule` gives its learning rate and its seeds. `run` is a run in its folder: begun or gone on with (`resume`), saved
(`saver`) and left when a signal asks for it (`signals`). `logs` writes a line an epoch and `progress` shows how far it
is. Nothing here reads data or computes a metric.
"""
