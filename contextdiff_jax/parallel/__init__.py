"""Meshes, sharding rules and the audit of what each device holds."""
