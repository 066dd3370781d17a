"""Requests through a line whose parts are killed: what every client got against what it gets when nothing happens.

`plan` says what is done, `work` which requests there are, `client` reads them, `chaos` breaks things, `verdict` and
`tally` compare, `leaks` looks for what was left behind, `run` puts it together.
The processes and the database are the caller's.
"""
