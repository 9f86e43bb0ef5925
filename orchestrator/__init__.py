"""Schedules trials; the only package that imports Ray."""
