"""Engines as numbers: profiles that ship with the product, and the step times that follow from them."""
