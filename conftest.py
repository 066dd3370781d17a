"""Settings of all suites."""

from hypothesis import HealthCheck, settings

# How long an example takes says something of the host, not of the code.
settings.register_profile("any-host", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any-host")
