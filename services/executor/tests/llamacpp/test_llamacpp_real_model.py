"""The default model: sensible answers, and the same ones under every schedule."""


