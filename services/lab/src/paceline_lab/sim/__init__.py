"""The discrete-event simulator: the product's own policies, placement and tracker, on engines made of numbers."""
