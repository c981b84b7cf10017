"""Measuring this machine: timers, workloads, memory."""
