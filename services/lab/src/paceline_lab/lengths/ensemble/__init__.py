"""What makes one answer of several length models: a third expert, how much each counts, and when none is trusted."""
