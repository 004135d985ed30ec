"""What holds for every test: on a busy machine one example may take long, which says nothing of the code."""

from __future__ import annotations

import hypothesis

hypothesis.settings.register_profile("suite", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("suite")
