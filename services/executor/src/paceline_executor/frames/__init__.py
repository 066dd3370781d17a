"""Engines that take requests, not plans: a plan becomes submissions and aborts, once a frame.

`backend` says what such an engine is, `loop` turns plans into what it understands, `engine` is the executor's contract
in front of it. TensorRT-LLM embedded and every remote server share this code.
"""
