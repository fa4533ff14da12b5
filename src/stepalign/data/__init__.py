"""Pairs of pictures with a preference, from wherever they are kept."""
