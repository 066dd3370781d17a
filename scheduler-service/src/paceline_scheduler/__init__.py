"""The scheduler of one engine: decides which requests run next.

Start reading at `loop` (what happens when), then `table` (what is known), `planner` (what is decided), `reports` and
`intake` (what comes in from below and above). `app` wires them.
"""
