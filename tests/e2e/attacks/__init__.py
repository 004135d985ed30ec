"""Attacks on the real gateway over the real runtime, in one place: one gateway for all of them, its audit log read at the end."""
