"""Bytes that cross between peers: strict codecs, sizes checked before anything is allocated, no pickle."""
