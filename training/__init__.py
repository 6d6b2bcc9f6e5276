"""One update of the model, and a run that survives what happens to it.

`update` takes a step's batches and changes the weights; `schedule` says with which learning rate and from which seeds.
`saver` writes checkpoints beside the training, `resume` finds the one to go on with, `signals` catches the requests to
leave, `logs` writes a line an epoch and `progress` shows how far it is. Nothing here reads data or computes a metric.
"""
