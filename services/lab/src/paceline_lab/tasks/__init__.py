"""Forecasts of compound tasks: public task graphs, training, export, rivals, evaluation."""
