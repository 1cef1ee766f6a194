"""Instruments: one timer, one memory meter, one counter of operations, one description of use."""
