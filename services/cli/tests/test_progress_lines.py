"""A long command says how far it is where no terminal is watched."""

from paceline_cli.progress_bars import ProgressLines


def test_each_finished_step_is_a_line_with_the_time_so_far_and_the_time_left() -> None:
    now = 0.0
    told: list[str] = []
    report = ProgressLines(told.append, lambda: now)
    report("fit", 0, 3)
    for done, at in ((1, 60.0), (2, 62.0), (3, 63.5)):
        now = at
        report("fit", done, 3)
    assert told == [
        "fit (3 steps)",
        "fit: 1 of 3, 1:00 min so far, about 2:00 min left",
        "fit: 3 of 3, 1:03 min so far",  # the second came too soon after the first
    ]
    report("read", 1, 1)
    assert told[-1] == "read: 1 of 1, 0:00 min so far"
