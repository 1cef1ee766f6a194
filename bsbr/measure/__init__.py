"""How things are measured: one timer, one fit, one description of the machine."""
