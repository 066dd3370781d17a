"""Mixture of experts over task families: GoodServe's predictor (arXiv 2605.16867), made to answer a distribution."""
