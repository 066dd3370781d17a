"""TensorRT-LLM behind the executor's contract: an agent that embeds its LLM class, and an emulator to test it by.

`surface` says what of TensorRT-LLM is touched, `backend` drives it, `plan_mode` steers its inner scheduler (off by
default), `emulator` behaves like it without a GPU. What is measured on the emulator is emulated, and says so.
"""
