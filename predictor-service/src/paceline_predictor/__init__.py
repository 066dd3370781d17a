"""Predicts how long answers get and how many calls a task still makes.

Where to look: `service` (the RPCs), `model` (what a length model must be), `histogram_model` (the one in use),
`keeping` (how what was learned outlives the process), `app` (how it all is put together).
"""
