"""Engine profiles held against measurements of GPUs."""
