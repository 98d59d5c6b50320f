"""Blobs: payloads and anchors in checked chunks, from whoever has them."""
