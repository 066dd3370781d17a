"""Predicts how long answers get and how many calls a task still makes.

Where to look: `service` (the RPCs), `model` (what a length model must be), `length_model` (the one in use),
`length_file` (where its file comes from), `keeping` (how what was learned outlives the process), `app` (how it all is
put together).
"""
