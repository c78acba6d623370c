"""Layers as products of smaller ones, with weights that come closest to the original's."""
