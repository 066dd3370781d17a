"""Engines behind one contract: llama.cpp, simulated."""
