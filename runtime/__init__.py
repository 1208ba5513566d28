"""What ships to the device: artifact, sessions, tiling, image I/O. Never imports torch."""
