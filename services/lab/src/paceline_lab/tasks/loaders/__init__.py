"""Readers of public sets of task graphs, one a module: `read(folder) -> list[TaskRecord]`. No text is read."""
