"""OpenAI-compatible front door of Paceline."""
