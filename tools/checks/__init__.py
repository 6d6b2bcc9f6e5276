"""The checks of tools/doctor.py, each of them one section of its page.

`subject` reads the data set as a run would, and goes on where a run would stop. `pictures` decodes every image once;
`duplicates` compares what it found, and `captions` the texts; `splits` says what two splits share. `disk`, `network`
and `step` look at the room, at the tokenizer and the weights, and at the time and memory of a step. `section` holds
what a check found, and `page` shows it: as text, or as HTML with the views of examples.
"""
