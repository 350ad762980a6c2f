"""Bytes and objects: pure encoders and decoders, no I/O."""
