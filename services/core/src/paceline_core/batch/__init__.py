"""Batch policies: which requests of one engine run next.

`view` is what a policy sees, `plan` what it answers, `policy` the protocol between them, `registry` the table of names.
"""
