"""`pace`: admit, then pace (algorithms C).

`needs` says what requests cost and when it is due, `value` what they are worth, `demand` which of them can be served
together, `urgency` who has to run now, `shape` how large a step may be, `triage` what is given up; `policy` puts them
together.
"""
