"""Pure models and policies of Paceline: no I/O, no clock, no global state."""
