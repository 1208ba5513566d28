"""Calibration tiles, Q/DQ quantization, sensitivity in dB, and the search for the most INT8 within a budget."""
