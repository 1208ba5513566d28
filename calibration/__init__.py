"""Calibration images and Q/DQ quantization (to come)."""
