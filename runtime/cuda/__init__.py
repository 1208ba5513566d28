"""What runs on an NVIDIA GPU, on PyCUDA: engines, images cut and blended there, the plugin class."""
