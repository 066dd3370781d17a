"""What is learned online about a length model: where it is off for a model or an app, and how far to trust it.

Where to look: `online` (the one class to use), `params` (its settings), `forecast` (from base masses to the answer),
`offset` (lengths of another model are longer or shorter: a shift in the logarithm), `recalibration` (a map on the CDF
that makes quantiles cover what they say), `learned` (what is kept per fleet, model and app), `evidence` (decayed means,
each level the prior of the next), `drift` (what to tell people and monitors).
"""
