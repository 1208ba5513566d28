"""Frames in, frames out: pixel formats, pipes, video files, GStreamer, and the pipeline between them."""
