"""Engines that run elsewhere, unmodified: OpenAI's HTTP interface, or the gRPC service of SMG for TensorRT-LLM.

They are driven by frames like the embedded one. What they cannot do or tell is declared, not imitated: see `dialects`.
"""
