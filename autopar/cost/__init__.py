"""Seconds and bytes of operations, layers, collectives and schedules."""
