"""The contracts everything else is built on: method, site, task, registry, settings, errors."""
