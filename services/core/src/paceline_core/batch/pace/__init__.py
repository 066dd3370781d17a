"""`pace`: admit, then pace (algorithms C).

`shortlist` picks the rows to look at, `needs` says what they cost and when it is due, `value` what they are worth,
`demand` which of them can be served together, `urgency` who has to run now, `triage` what is given up, `shape` how
large a step may be, `frame` for how long a run set is kept; `policy` puts them together.
"""
