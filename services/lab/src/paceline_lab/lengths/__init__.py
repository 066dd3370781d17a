"""Output lengths: data, training, evaluation."""
