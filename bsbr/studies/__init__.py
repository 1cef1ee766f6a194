"""What is compared with the instruments of `measure/`: passes, variants, conversions, the original implementation."""
