"""Bytes on disk: atomic folders, adapters, the state of a run. safetensors and JSON, never pickle."""
